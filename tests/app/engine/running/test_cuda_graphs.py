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

from app.engine.cache.pages import PAGE_TOKENS
from app.engine.engine import Engine
from app.engine.engine_loop import EngineLoop
from app.engine.running.cuda_graphs import Recorder, Step, no_recorder, recorder_on, shapes_to
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant
from tests.support.clock import Clock
from tests.support.engine_requests import (
    Outcome,
    cache_bytes,
    expected,
    prompt,
    request,
    run,
    variant,
)
from tests.support.tiny import SERVED


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


LIMITS = EngineLimits(max_num_seqs=2, max_model_len=96)
SHAPES = shapes_to(LIMITS.max_num_seqs, 96, 1 << 20)


def engine(recorder: Recorder, *variants: Variant) -> Engine:
    """An engine with recorded steps of these variants."""
    made = Engine(LIMITS, recorder=lambda _device: recorder)
    made.kernels.finish(*variants)
    return made


BOTH_VARIANTS = ((5, False), (9, True), (60, False))  # tokens of the prompt, and whether pruned


def test_replays_give_what_generate_gives() -> None:
    check_replays("llama", BOTH_VARIANTS)


@pytest.mark.slow
def test_replays_of_experts_give_what_generate_gives() -> None:
    check_replays("qwen2_moe", ((5, True), (60, True)))


@pytest.mark.slow
@pytest.mark.parametrize("family", SERVED)
def test_replays_of_both_variants_give_what_generate_gives(family: str) -> None:
    check_replays(family, BOTH_VARIANTS)


def check_replays(family: str, prompts: Sequence[tuple[int, bool]]) -> None:
    traces = Traces()
    asks = [
        request(prompt(length, seed=length), variant(pruned, family), max_new_tokens=9)
        for length, pruned in prompts
    ]
    variants = {id(ask.variant): ask.variant for ask in asks}.values()
    each = engine(traces, *variants)
    num_recorded = traces.num_recorded
    assert num_recorded == traces.num_replayed == len(SHAPES) * len(variants)
    outcome = run(each, *asks)
    for ask in asks:
        assert outcome.of(ask) == expected(ask)
    assert traces.num_recorded == num_recorded
    # nearly all of the eight decodes of each variant
    assert traces.num_replayed >= num_recorded + 6 * len(variants)


def test_shapes_are_few_and_the_largest_come_first() -> None:
    shapes = shapes_to(64, 4096, 4000)
    assert len(shapes) < 80
    sizes = [shape.num_rows * shape.num_pages for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 4000
    for rows, pages in ((1, 1), (3, 70), (64, 40), (23, 90)):
        fitting = [shape for shape in shapes if shape[0] >= rows and shape[1] >= pages]
        assert min(each[0] * each[1] for each in fitting) <= 3 * max(4, pages) * rows
    assert shapes_to(5, 40, 100) == [(5, 3), (4, 3), (2, 3), (1, 3)]
    assert shapes_to(64, 4096, 100)[0] == (1, 96)


def test_no_step_records_and_each_decode_is_replayed() -> None:
    traces, of = Traces(), variant()
    each = engine(traces, of)
    num_recorded = traces.num_recorded
    run(each, request(prompt(9), of, max_new_tokens=81, ignore_eos=True))
    assert traces.num_recorded == num_recorded
    assert traces.num_replayed == num_recorded + 80


@pytest.mark.slow
def test_recordings_live_while_requests_come_and_go() -> None:
    """Also while none runs: pages stay where they are."""
    traces, outcome = Traces(), Outcome()
    each = engine(traces, variant())
    groups = [
        [request(prompt(9, seed), max_new_tokens=9, ignore_eos=True) for seed in seeds]
        for seeds in ((1, 2, 3), (4,), (5, 6, 7), (8,))
    ]
    for group in groups:
        run(each, *group, outcome=outcome)
    for ask in (ask for group in groups for ask in group):
        assert outcome.of(ask) == expected(ask)
    assert traces.num_recorded == len(SHAPES)


def test_recordings_are_made_beside_live_steps_and_steps_do_not_wait_for_them() -> None:
    traces = Traces()
    each = Engine(LIMITS, recorder=lambda _device: traces)
    loop, ask = EngineLoop(each), request(prompt(9), max_new_tokens=60, ignore_eos=True)
    each.add(ask)
    assert each.step()
    assert traces.num_recorded == 0
    while each.has_work:
        loop.step()
    beside = traces.num_recorded
    while each.kernels.warm_up.wait_s == 0:
        loop.step()
    assert 0 < beside <= traces.num_recorded == len(SHAPES)


def test_what_cannot_be_recorded_is_taken_as_usual_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[Step] = []

    def refuse(step: Step) -> Step:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        each = engine(refuse, variant())
        ask = request(prompt(9), max_new_tokens=8)
        assert run(each, ask).of(ask) == expected(ask)
        each.kernels.finish(variant())
    assert len(tried) == 1
    assert "launched one by one" in caplog.text


def test_a_shape_without_memory_blocks_no_smaller_one_and_is_tried_again() -> None:
    traces, clock, is_short = Traces(), Clock(), True

    def record(step: Step) -> Step:
        if is_short and len(step()) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return traces(step)

    each = Engine(LIMITS, recorder=lambda _device: record)
    warm_up = each.kernels.warm_up
    warm_up._clock = clock
    each.kernels.finish(variant())
    num_small = sum(shape.num_rows == 1 for shape in SHAPES)
    assert 0 < traces.num_recorded == num_small < len(SHAPES)
    ask = request(prompt(9), max_new_tokens=8)
    assert run(each, ask).of(ask) == expected(ask)
    assert traces.num_replayed == num_small + 7
    for num_expected in (num_small, len(SHAPES)):
        assert warm_up.wait_s is not None
        assert warm_up.wait_s > 0
        clock.now += warm_up.wait_s
        while warm_up.advance():
            pass
        assert traces.num_recorded == num_expected
        is_short = False
    assert warm_up.wait_s is None


@pytest.mark.slow
def test_the_shape_of_most_pages_need_not_be_that_of_most_inputs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the cache has room for fewer pages than all rows could have."""
    monkeypatch.setattr("app.engine.running.cuda_graphs._FEWEST_PAGES", 1)
    traces = Traces()
    limits = replace(LIMITS, kv_cache_bytes=cache_bytes(4 * PAGE_TOKENS))
    each = Engine(limits, recorder=lambda _device: traces)
    each.kernels.finish(variant())
    assert traces.num_recorded == len(shapes_to(2, 96, 4)) > 2
    assert not caplog.records


@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, lambda logits: logits.roll(1, dims=1)],
    ids=["of nothing", "of another order"],
)
def test_a_replay_that_repeats_something_else_is_found_out(
    change: Callable[[torch.Tensor], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces(change)
    each = engine(traces, variant())
    ask = request(prompt(9), max_new_tokens=8)
    assert run(each, ask).of(ask) == expected(ask)
    assert traces.num_replayed == 1
    assert "WrongReplay" in caplog.text


def test_a_replay_that_does_not_read_its_inputs_is_found_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def once(step: Step) -> Step:
        logits = step()
        return lambda: logits

    ask = request(prompt(9), max_new_tokens=8)
    assert run(engine(once, variant()), ask).of(ask) == expected(ask)
    assert "WrongReplay" in caplog.text


@pytest.mark.slow
def test_background_steps_are_recorded_as_live_ones_are() -> None:
    """Otherwise their times would tell of the recording, and not of the model."""
    num_replayed = []
    for is_background in (False, True):
        traces = Traces()
        ask = replace(request(prompt(9), max_new_tokens=8), is_background=is_background)
        assert run(engine(traces, variant()), ask).of(ask) == expected(ask)
        num_replayed.append(traces.num_replayed - traces.num_recorded)
    assert num_replayed[0] == num_replayed[1] > 0


def test_only_gpus_have_recordings() -> None:
    assert recorder_on(torch.device("cpu")) is None
    no_recorder(torch.device("cuda"))
