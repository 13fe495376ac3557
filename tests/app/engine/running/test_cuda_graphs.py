"""Decodes that are recorded and replayed give what the engine gives without.

The recorder is torch's tracer: what it has recorded are operations on tensors and no Python, as in
a CUDA graph, so what a replay here can repeat, one there can.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from app.engine.engine import Engine
from app.engine.running.cuda_graphs import Recorder, Step, no_recorder, recorder_on
from app.engine.scheduling.scheduler import EngineLimits
from pruning.models.architectures import ARCHITECTURES
from tests.support.engine_requests import Outcome, expected, prompt, request, run, variant
from tests.support.tiny import every_family


class Traces:
    """Records, and counts what it has recorded and what was replayed."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.num_recorded = 0
        self.num_replayed = 0
        self._change = change

    def __call__(self, step: Step) -> Step:
        self.num_recorded += 1
        step()
        graph = cast("Step", make_fx(step)())

        def replay() -> torch.Tensor:
            self.num_replayed += 1
            logits = graph()
            return logits if self._change is None else self._change(logits)

        return replay


def engine(recorder: Recorder, **limits: int) -> Engine:
    return Engine(EngineLimits(**limits), recorder=lambda _device: recorder)


BOTH_VARIANTS = ((5, False), (9, True), (60, False))  # tokens of the prompt, and whether pruned


@every_family
def test_replays_give_what_generate_gives(family: str) -> None:
    check_replays(family, BOTH_VARIANTS if family == "llama" else ((5, True), (60, True)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_replays_of_both_variants_give_what_generate_gives(family: str) -> None:
    check_replays(family, BOTH_VARIANTS)


def check_replays(family: str, prompts: Sequence[tuple[int, bool]]) -> None:
    traces = Traces()
    asks = [
        request(prompt(length, seed=length), variant(pruned, family), max_new_tokens=9)
        for length, pruned in prompts
    ]
    outcome = run(engine(traces), *asks)
    for each in asks:
        assert outcome.of(each) == expected(each)
    # nearly all of the eight decodes of each variant
    assert traces.num_replayed >= 6 * len({pruned for _, pruned in prompts})


def test_a_shape_is_recorded_when_it_comes_again_and_replayed_from_then_on() -> None:
    traces = Traces()
    each = request(prompt(9), max_new_tokens=21, ignore_eos=True)
    run(engine(traces), each)
    assert traces.num_recorded == 1
    assert traces.num_replayed == 19 + 1  # of 20 decodes, and once to be tried


def test_a_recording_lives_while_requests_come_and_go() -> None:
    """Also while none runs: pages stay where they are."""
    traces, outcome = Traces(), Outcome()
    each = engine(traces)
    groups = [
        [request(prompt(9, seed), max_new_tokens=9, ignore_eos=True) for seed in seeds]
        for seeds in ((1, 2, 3), (4,), (5, 6, 7), (8,))
    ]
    for group in groups:
        run(each, *group, outcome=outcome)
    for ask in (ask for group in groups for ask in group):
        assert outcome.of(ask) == expected(ask)
    assert traces.num_recorded == 2  # for four, and for one


def test_what_cannot_be_recorded_is_taken_as_usual_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[Step] = []

    def refuse(step: Step) -> Step:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing")

    each = engine(refuse)
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            ask = request(prompt(9, seed), max_new_tokens=8)
            assert run(each, ask).of(ask) == expected(ask)
    assert len(tried) == 1
    assert "one kernel at a time" in caplog.text


@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, lambda logits: logits.roll(1, dims=1)],
    ids=["of nothing", "of another order"],
)
def test_a_replay_that_repeats_something_else_is_found_out(
    change: Callable[[torch.Tensor], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces(change)
    ask = request(prompt(9), max_new_tokens=8)
    assert run(engine(traces), ask).of(ask) == expected(ask)
    assert traces.num_replayed == 1
    assert "WrongReplay" in caplog.text


def test_a_replay_that_does_not_read_its_inputs_is_found_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def once(step: Step) -> Step:
        logits = step()
        return lambda: logits

    ask = request(prompt(9), max_new_tokens=8)
    assert run(engine(once), ask).of(ask) == expected(ask)
    assert "WrongReplay" in caplog.text


def test_background_steps_are_recorded_as_live_ones_are() -> None:
    """Otherwise their times would tell of the recording, and not of the model."""
    num_recorded = []
    for is_background in (False, True):
        traces = Traces()
        ask = replace(request(prompt(9), max_new_tokens=8), is_background=is_background)
        assert run(engine(traces), ask).of(ask) == expected(ask)
        num_recorded.append(traces.num_recorded)
    assert num_recorded[0] == num_recorded[1] > 0


def test_only_gpus_have_recordings() -> None:
    assert recorder_on(torch.device("cpu")) is None
    assert recorder_on(torch.device("cuda")) is not None
    no_recorder(torch.device("cuda"))
