"""How requests enter and leave the engine: refusals, cancelling, failures, and what is left."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from app.engine.autotuning import OFF
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.engine import Engine, PromptTooLong, VariantStats
from app.engine.running.flat_model import COMPILED
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, Request, RequestRefused, Timings
from app.engine.variant import make_variant
from pruning.models.blocks import block_list
from tests.support.compiled import always
from tests.support.engine_requests import (
    PRUNED_BLOCKS,
    Outcome,
    cache_bytes,
    expected,
    plain,
    prompt,
    request,
    run,
    variant,
)
from tests.support.integrity import check_engine
from tests.support.tiny import MAX_POSITIONS, NUM_BLOCKS, SERVED, VOCAB_SIZE, tiny_model

DENSE, PRUNED = variant(), variant(pruned=True)


@pytest.mark.parametrize(
    ("refused", "error", "says"),
    [
        (request(()), RequestRefused, "at least one token"),
        (request([3] * 100, max_new_tokens=29), PromptTooLong, f"{MAX_POSITIONS} tokens"),
        (request([3] * 5000, max_new_tokens=1), PromptTooLong, "shorten the prompt"),
        (request([3, VOCAB_SIZE]), RequestRefused, f"0 to {VOCAB_SIZE - 1}"),
        (request([3, -1]), RequestRefused, "-1 to 3"),
    ],
)
def test_what_can_never_run_is_refused(
    refused: Request, error: type[RequestRefused], says: str
) -> None:
    engine = Engine()
    with pytest.raises(error, match=says):
        engine.add(refused)
    assert not engine.has_work


def test_the_longest_possible_request_runs() -> None:
    each = request(prompt(MAX_POSITIONS - 8), max_new_tokens=8)
    outcome = run(Engine(EngineLimits(max_batch_tokens=50)), each)
    assert outcome.of(each) == expected(each)


@pytest.mark.parametrize(
    "limits", [{"max_model_len": 20}, {"kv_cache_bytes": cache_bytes(3 * PAGE_TOKENS)}]
)
def test_limits_of_the_engine_shorten_requests(limits: dict[str, int]) -> None:
    engine = Engine(EngineLimits(**limits))
    longest = engine.max_len(DENSE)
    assert longest < MAX_POSITIONS
    each = request(prompt(longest - 2), max_new_tokens=2)
    assert run(engine, each).of(each) == expected(each)
    with pytest.raises(PromptTooLong):
        engine.add(request(prompt(longest - 1), max_new_tokens=2))


def test_an_id_is_taken_until_its_request_has_ended() -> None:
    engine = Engine()
    first = request(request_id="a", max_new_tokens=2)
    engine.add(first)
    with pytest.raises(RequestRefused, match="a is running"):
        engine.add(request(request_id="a"))
    run(engine)
    engine.add(request(request_id="a"))


def test_cancelling_frees_the_place_at_once() -> None:
    engine = Engine(EngineLimits(max_num_seqs=2))
    requests = [request(prompt(5, seed=seed), max_new_tokens=12) for seed in range(3)]
    outcome = Outcome()
    for each in requests:
        engine.add(each)
    for _ in range(4):
        outcome.take(engine.step())
    assert engine.stats().num_running == 2
    event = engine.cancel(requests[0].request_id)
    assert event is not None
    outcome.take([event])
    assert (event.token_id, event.finish_reason) == (None, FinishReason.ABORT)
    assert engine.stats().num_running == 1
    check_engine(engine)
    outcome.take(engine.step())
    assert engine.stats().num_running == 2
    while engine.has_work:
        outcome.take(engine.step())
    assert [outcome.of(each) for each in requests[1:]] == [expected(each) for each in requests[1:]]


@pytest.mark.parametrize("kernels", ["flat", "compiled"])
@pytest.mark.parametrize("family", SERVED)
def test_no_reference_cycle_holds_a_model(family: str, kernels: str) -> None:
    """So an unload frees its memory at once, without a collection that stops all threads."""
    tuner = always(COMPILED) if kernels == "compiled" else OFF
    engine, model = Engine(tuner=tuner), copy.deepcopy(tiny_model(family))
    requests = [
        request(prompt(5), make_variant(name, "tiny", model, keep), max_new_tokens=3)
        for name, keep in (("tiny", None), ("tiny@-2", PRUNED_BLOCKS))
    ]
    weights = [weakref.ref(each.variant.model) for each in requests]
    gc.collect()
    gc.disable()
    try:
        run(engine, *requests)
        del requests, model
        assert [each() for each in weights] == [None, None]
    finally:
        gc.enable()


def test_a_waiting_request_can_be_cancelled_and_an_unknown_one_is_none() -> None:
    engine = Engine()
    each = request()
    engine.add(each)
    event = engine.cancel(each.request_id)
    assert event is not None
    assert event.timings is not None
    assert event.timings.scheduled_s is None
    assert engine.cancel(each.request_id) is None
    assert not engine.has_work
    assert engine.step() == []


def test_a_half_read_prompt_can_be_cancelled() -> None:
    engine = Engine(EngineLimits(max_batch_tokens=16))
    long, short = request(prompt(60)), request(prompt(5), max_new_tokens=6)
    engine.add(long)
    engine.step()
    engine.cancel(long.request_id)
    assert run(engine, short).of(short) == expected(short)


def test_past_its_deadline_a_request_ends_within_a_step_running_or_waiting() -> None:
    clock = Clock()
    engine, outcome = Engine(EngineLimits(max_num_seqs=1), clock=clock), Outcome()
    running = request(prompt(5), max_new_tokens=50, deadline_s=10.0, ignore_eos=True)
    waiting = request(prompt(6), deadline_s=10.0)
    patient = request(prompt(7), max_new_tokens=6)
    for each in (running, waiting, patient):
        engine.add(each)
    for clock.now_s in (0.0, 5.0, 9.9):
        outcome.take(engine.step())
    assert outcome.last == {}
    clock.now_s = 10.0
    outcome.take(engine.step())
    check_engine(engine)
    assert [outcome.reason(each) for each in (running, waiting)] == [FinishReason.TIMEOUT] * 2
    assert outcome.of(running) == plain_tokens(running)[:3]
    assert outcome.of(waiting) == []
    run(engine, outcome=outcome)
    assert outcome.of(patient) == expected(patient)


def test_a_deadline_that_has_passed_on_arrival_costs_no_forward() -> None:
    engine = Engine(clock=lambda: 5.0)
    late = request(deadline_s=4.0)
    outcome = run(engine, late)
    assert outcome.reason(late) is FinishReason.TIMEOUT
    timings = Timings(late.arrived_s, None, None, 5.0, 0, num_cached_tokens=0)
    assert outcome.last[late.request_id].timings == timings


def test_cancelling_can_have_another_reason() -> None:
    engine = Engine()
    each = request()
    engine.add(each)
    event = engine.cancel(each.request_id, FinishReason.STOP)
    assert event is not None
    assert event.finish_reason is FinishReason.STOP
    assert not event.is_text


def test_a_variant_that_cannot_run_at_all_harms_no_other() -> None:
    config = copy.deepcopy(DENSE.model.config)
    config.layer_types = ["chunked_attention"] * config.num_hidden_layers
    odd_model = copy.copy(DENSE.model)
    odd_model.config = config
    odd = make_variant("odd", "odd", odd_model)
    doomed = [request(prompt(5), odd) for _ in range(2)]
    fine = request(prompt(5), max_new_tokens=12)
    outcome = run(Engine(), doomed[0], fine, doomed[1])
    assert [outcome.reason(each) for each in doomed] == [FinishReason.ERROR] * 2
    assert outcome.of(fine) == expected(fine)


def test_a_failing_forward_ends_its_own_sequences_only(caplog: pytest.LogCaptureFixture) -> None:
    broken = make_variant("broken", "tiny", DENSE.model, (0, 1, 2))
    block_list(broken.model)[1].mlp = _Failing(after=3)
    doomed = [request(prompt(5), broken, request_id=f"doomed-{n}") for n in range(3)]
    fine = [request(prompt(5), of, max_new_tokens=12) for of in (DENSE, PRUNED)]
    with caplog.at_level(logging.ERROR):
        outcome = run(Engine(), doomed[0], fine[0], *doomed[1:], fine[1])
    for each in doomed:
        assert outcome.reason(each) is FinishReason.ERROR
        assert each.request_id in caplog.text
    for each in fine:
        assert outcome.of(each) == expected(each)


def test_a_lost_device_is_more_than_the_failure_of_a_batch() -> None:
    broken = make_variant("broken", "tiny", DENSE.model, (0, 1, 2))
    block_list(broken.model)[1].mlp = _Failing(after=0, error=torch.AcceleratorError("no device"))
    engine = Engine()
    engine.add(request(prompt(5), broken))
    with pytest.raises(torch.AcceleratorError):
        engine.step()


def test_a_failing_prefill_leaves_the_running_sequences_of_its_variant_alone() -> None:
    failing = _Failing(after=10**9)
    fragile = make_variant("fragile", "tiny", DENSE.model, (0, 1, 2))
    block_list(fragile.model)[1].mlp = failing
    engine, outcome = Engine(), Outcome()
    running = request(prompt(5), fragile, max_new_tokens=12)
    engine.add(running)
    outcome.take(engine.step())
    outcome.take(engine.step())
    doomed = [request(prompt(70, seed=seed), fragile) for seed in range(3)]
    for each in doomed:
        engine.add(each)
    failing.countdown = 0
    outcome.take(engine.step())
    failing.countdown = 10**9
    check_engine(engine)
    assert [outcome.reason(each) for each in doomed] == [FinishReason.ERROR] * 3
    run(engine, outcome=outcome)
    assert outcome.of(running) == expected(running)


def test_logits_that_are_not_finite_end_one_sequence_and_leave_no_trace() -> None:
    poison = 3
    model = copy.deepcopy(DENSE.model)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[poison] = torch.nan
    poisoned = make_variant("poisoned", "tiny", model)
    engine = Engine()
    clean = [token for token in prompt(9) if token != poison]
    ill = request([*clean, poison], poisoned)
    well = request(clean, poisoned, max_new_tokens=12)
    outcome = Outcome()
    engine.add(ill)
    engine.add(well)
    while engine.has_work:
        outcome.take(engine.step())
        check_engine(engine)
    assert outcome.reason(ill) is FinishReason.ERROR
    assert outcome.of(well) == expected(well)


def test_stats_tell_what_runs_and_what_waits() -> None:
    engine = Engine(EngineLimits(max_num_seqs=3, kv_cache_bytes=cache_bytes(1024)))
    for of in (DENSE, PRUNED, DENSE, PRUNED, DENSE):
        engine.add(request(prompt(5), of, max_new_tokens=6))
    assert engine.stats().num_waiting == 5
    for _ in range(2):
        engine.step()
        check_engine(engine)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (3, 2)
    assert stats.variants == {
        DENSE.name: VariantStats(3, 0, kv_cache_bytes=3 * cache_bytes(PAGE_TOKENS, padding=0)),
        PRUNED.name: VariantStats(0, 2, kv_cache_bytes=0),
    }
    num_units = 1024 // PAGE_TOKENS * NUM_BLOCKS
    assert stats.kv_cache_usage == pytest.approx(3 * NUM_BLOCKS / (num_units + 1))
    assert stats.batch_size == 3


def test_an_idle_engine_holds_nothing() -> None:
    engine = Engine()
    run(engine, request(of=DENSE), request(of=PRUNED))
    check_engine(engine)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)
    assert (stats.batch_size, stats.variants) == (0, {})


@pytest.mark.parametrize("num_steps", range(1, 8))
def test_nothing_holds_a_variant_whose_requests_are_over(num_steps: int) -> None:
    """Its weights may be unloaded, while others run."""
    engine, of = Engine(), make_variant("gone", "tiny", DENSE.model, (0, 2))
    each = request(of=of, max_new_tokens=50)
    engine.add(request(of=DENSE, max_new_tokens=50))
    engine.add(each)
    for _ in range(num_steps):
        engine.step()
    engine.cancel(each.request_id)
    watch = weakref.ref(of)
    del of, each
    assert watch() is None


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def plain_tokens(each: Request) -> list[int]:
    return [choice.token_id for choice in plain(each)]


class _Failing(nn.Module):
    """A part of a block that fails after a number of forwards, as when memory runs out."""

    def __init__(self, after: int, error: Exception | None = None) -> None:
        super().__init__()
        self.countdown = after
        self._error = error or MemoryError("no room for the activations")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.countdown:
            raise self._error
        self.countdown -= 1
        return hidden
