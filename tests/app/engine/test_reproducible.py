"""A reproducible output depends on no other request, batch, chunk or restart: bit for bit."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.engine.autotuning import OFF, Autotuner
from app.engine.engine import Engine, NotYetReproducible
from app.engine.kernels.compiled.model import BLOCKS
from app.engine.kernels.compiled.openmp import ParallelFunction
from app.engine.kernels.int8 import int8_model
from app.engine.running.prepared_kernels import REPRODUCIBLE
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import PromptToken, Request, TokenEvent
from app.engine.variant import Variant, make_variant
from tests.support.compiled import load_compiled
from tests.support.engine_requests import PRUNED_BLOCKS, prompt, request
from tests.support.tiny import tiny_model

FAMILIES = ("llama", "qwen3", "gpt2")  # the last one has no compiled blocks
TUNERS = {"compiled": lambda: Autotuner(always=REPRODUCIBLE), "torch": lambda: OFF}

Told = list[tuple[int, float | None, tuple[tuple[int, float], ...], tuple[PromptToken, ...]]]


@dataclass(frozen=True)
class Arrival:
    """A request that comes before a step, and maybe goes before a later one."""

    seed: int
    num_prompt: int
    step: int
    cancelled_after: int | None
    is_pruned: bool


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        seed=st.integers(0, 5),
        num_prompt=st.sampled_from([1, 2, 7, 33, 64, 90]),
        step=st.integers(0, 12),
        cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 6)),
        is_pruned=st.booleans(),
    ),
    min_size=1,
    max_size=9,
)


@cache
def variants(family: str, dtype: torch.dtype, is_int8: bool) -> tuple[Variant, Variant]:
    model = copy.deepcopy(tiny_model(family))
    nn.Module.to(model, dtype)
    model = int8_model(model) if is_int8 else model
    dense = make_variant("tiny", "tiny", model)
    return dense, make_variant("tiny@-2", "tiny", model, PRUNED_BLOCKS)


def asked(arrival: Arrival, of: tuple[Variant, Variant], name: str) -> Request:
    ids = prompt(arrival.num_prompt, arrival.seed)
    sampled = {"temperature": 1.0, "seed": arrival.seed} if arrival.seed % 2 else {}
    return request(
        ids, of[arrival.is_pruned], request_id=name, max_new_tokens=6, ignore_eos=True,
        num_logprobs=2, num_prompt_logprobs=1, reproducible=True, **sampled,
    )  # fmt: skip


def told(engine: Engine, arrivals: Sequence[Arrival], of: tuple[Variant, Variant]) -> list[Told]:
    """The tokens and log-probabilities of each request."""
    found: list[Told] = [[] for _ in arrivals]
    waiting = sorted(range(len(arrivals)), key=lambda at: arrivals[at].step)
    steps = 0
    while waiting or engine.has_work:
        while waiting and arrivals[waiting[0]].step <= steps:
            at = waiting.pop(0)
            engine.add(asked(arrivals[at], of, str(at)))
        for at, arrival in enumerate(arrivals):
            if arrival.cancelled_after == steps - arrival.step:
                engine.cancel(str(at))
        for event in engine.step():
            note(event, found[int(event.request_id)])
        steps += 1
    return found


def note(event: TokenEvent, found: Told) -> None:
    if event.token_id is not None:
        found.append((event.token_id, event.logprob, event.top_logprobs, event.prompt))


@pytest.mark.parametrize("tuner", TUNERS)
@settings(max_examples=10)
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    is_int8=st.booleans(),
    chunk=st.sampled_from([16, 512]),
    arrivals=ARRIVALS,
)
def test_every_output_equals_that_of_the_request_alone(
    tuner: str,
    family: str,
    dtype: torch.dtype,
    is_int8: bool,
    chunk: int,
    arrivals: list[Arrival],
) -> None:
    load_compiled(dtype)
    of = variants(family, dtype, is_int8 and family != "gpt2")
    limits = EngineLimits(max_num_seqs=8, max_batch_tokens=chunk)
    together = told(Engine(limits, tuner=TUNERS[tuner]()), arrivals, of)
    for arrival, found in zip(arrivals, together, strict=True):
        alone = replace(arrival, step=0, cancelled_after=None)
        (expected,) = told(Engine(limits, tuner=TUNERS[tuner]()), [alone], of)
        assert found == expected[: len(found)]
        assert arrival.cancelled_after is not None or len(found) == 6


@settings(max_examples=8)
@given(arrivals=ARRIVALS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_compiled_blocks_read_prompts_in_chunks_of_any_size(
    arrivals: list[Arrival], dtype: torch.dtype
) -> None:
    load_compiled(dtype)
    of = variants("llama", dtype, False)
    whole, parts = (
        told(Engine(EngineLimits(max_batch_tokens=chunk), tuner=Autotuner(always=REPRODUCIBLE)),
             [replace(each, cancelled_after=None) for each in arrivals], of)
        for chunk in (512, 7)
    )  # fmt: skip
    assert whole == parts


def test_one_request_makes_its_batch_reproducible_and_says_so() -> None:
    load_compiled()
    engine = Engine(tuner=Autotuner())
    kernels = {}
    for name, is_reproducible in (("one", True), ("other", False)):
        engine.add(request(request_id=name, reproducible=is_reproducible, ignore_eos=True))
    while engine.has_work:
        for event in engine.step():
            if event.timings is not None:
                kernels[event.request_id] = event.timings.kernels["blocks"]
    assert kernels == dict.fromkeys(("one", "other"), "compiled, reproducible")


def test_until_its_kernels_are_compiled_a_request_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = ParallelFunction(BLOCKS[torch.float32].function)
    block.is_claimed = block.has_failed = True
    monkeypatch.setitem(BLOCKS, torch.float32, block)
    engine = Engine(tuner=Autotuner())
    with pytest.raises(NotYetReproducible, match="retry later"):
        engine.add(request(reproducible=True))
    engine.add(request())
    Engine(is_reproducible=True, tuner=OFF).check(request())
    with pytest.raises(NotYetReproducible):
        Engine(is_reproducible=True, tuner=Autotuner(always=REPRODUCIBLE)).check(request())


def test_another_digest_where_outputs_may_differ() -> None:
    kernels = Engine(tuner=Autotuner()).kernels
    assert kernels.digest(is_reproducible=True) != kernels.digest(is_reproducible=False)
