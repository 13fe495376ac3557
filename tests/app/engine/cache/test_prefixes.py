"""Prompts that begin alike are read once, and nothing but time tells it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.autotuning import Autotuner
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.engine import Engine
from app.engine.running.prepared_kernels import REPRODUCIBLE
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import PromptToken, Request
from app.engine.variant import make_variant
from tests.support.compiled import load_compiled
from tests.support.engine_requests import (
    PRUNED_BLOCKS,
    cache_bytes,
    check_scored,
    expected,
    prompt,
    request,
    run,
    scored_prompt,
    variant,
)
from tests.support.tiny import tiny_model

LONG = 2 * PAGE_TOKENS + 7
WHOLE_PAGES = 2 * PAGE_TOKENS


def shared(each: Request, scope: str = "") -> Request:
    return replace(each, cache_scope=scope)


def num_found(engine: Engine, each: Request) -> int:
    """The tokens of its prompt that are not read; its output must be right."""
    outcome = run(engine, each)
    assert outcome.of(each) == expected(each)
    timings = outcome.last[each.request_id].timings
    assert timings is not None
    assert timings.num_cached_tokens is not None
    return timings.num_cached_tokens


def num_hits(engine: Engine) -> int:
    return sum(counts.num_hits for counts in engine.stats().cache_counts.values())


def read(engine: Engine, each: Request) -> None:
    assert num_found(engine, each) == 0


def test_a_prompt_that_begins_alike_is_read_from_where_it_differs() -> None:
    engine = Engine()
    read(engine, shared(request(prompt(LONG))))
    other = (*prompt(LONG)[: PAGE_TOKENS + 3], *prompt(20, seed=5))
    assert num_found(engine, shared(request(other))) == PAGE_TOKENS
    assert num_found(engine, shared(request(prompt(LONG)))) == WHOLE_PAGES
    counts = engine.stats().cache_counts[variant().name]
    assert counts.num_queries == 2 * LONG + len(other)
    assert counts.num_hits == PAGE_TOKENS + WHOLE_PAGES


def test_a_conversation_goes_on_behind_the_answer() -> None:
    engine, each = Engine(), shared(request(prompt(PAGE_TOKENS - 3), max_new_tokens=6))
    answer = run(engine, each).of(each)
    turn = shared(request((*each.prompt_ids, *answer, *prompt(4, seed=9))))
    assert num_found(engine, turn) == PAGE_TOKENS


@pytest.mark.parametrize("scope", ["other", None])
def test_another_scope_finds_nothing(scope: str | None) -> None:
    engine = Engine()
    read(engine, shared(request(prompt(LONG)), "one"))
    read(engine, replace(request(prompt(LONG)), cache_scope=scope))


def test_what_reads_in_full_leaves_nothing_behind() -> None:
    engine = Engine()
    read(engine, request(prompt(LONG)))
    read(engine, shared(request(prompt(LONG))))


def test_variants_find_only_what_they_have_read() -> None:
    engine = Engine()
    read(engine, shared(request(prompt(LONG))))
    read(engine, shared(request(prompt(LONG), variant(pruned=True))))
    again = make_variant("tiny", "tiny", tiny_model("llama"), PRUNED_BLOCKS)
    read(engine, shared(request(prompt(LONG), again)))
    assert num_found(engine, shared(request(prompt(LONG), again))) == WHOLE_PAGES


def test_parallel_samples_read_their_prompt_once() -> None:
    engine = Engine()
    asked = [
        shared(request(prompt(LONG + 30), temperature=1.0, seed=seed, ignore_eos=True))
        for seed in range(4)
    ]
    alone = [run(Engine(), replace(each, cache_scope=None)).of(each) for each in asked]
    outcome = run(engine, *asked)
    assert [outcome.of(each) for each in asked] == alone
    assert num_hits(engine) == 3 * ((LONG + 29) // PAGE_TOKENS) * PAGE_TOKENS


def test_log_probabilities_of_a_prompt_are_those_of_all_of_it() -> None:
    engine = Engine()
    read(engine, shared(request(prompt(LONG))))
    each = shared(request(prompt(LONG), num_prompt_logprobs=2))
    engine.add(each)
    scored: list[PromptToken] = []
    while engine.has_work:
        for event in engine.step():
            scored += event.prompt
    check_scored(scored, scored_prompt(variant(), prompt(LONG), 2))


def test_a_prompt_with_log_probabilities_is_read_in_full_and_found_by_others() -> None:
    engine, each = Engine(), shared(request(prompt(LONG), num_prompt_logprobs=0))
    for _ in range(2):
        read(engine, replace(each, request_id=f"{each.request_id} again"))
    assert num_found(engine, shared(request(prompt(LONG)))) == WHOLE_PAGES


def test_numbers_that_are_not_finite_are_found_by_nothing() -> None:
    model = tiny_model("llama", seed=3)
    poisoned = make_variant("poisoned", "tiny", model)
    engine = Engine()
    with torch.no_grad():
        weights = model.get_parameter("model.embed_tokens.weight")
        before = weights[3].clone()
        weights[3] = torch.nan
    try:
        each = shared(request((*prompt(LONG, seed=1), 3), poisoned))
        outcome = run(engine, each)  # which checks that all that is kept is finite
        assert outcome.of(each) == []
        assert num_hits(engine) == 0
    finally:
        with torch.no_grad():
            weights[3] = before
    read(engine, shared(request((*prompt(LONG, seed=1), 3), poisoned)))


def test_pages_that_are_needed_are_taken_from_what_is_kept() -> None:
    engine = Engine(EngineLimits(kv_cache_bytes=cache_bytes(4 * PAGE_TOKENS)))
    for seed in range(6):
        read(engine, shared(request(prompt(LONG, seed))))
    assert num_found(engine, shared(request(prompt(LONG, 5)))) == WHOLE_PAGES
    read(engine, shared(request(prompt(LONG, 0))))


def logprobs(engine: Engine, *asked: Request) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {each.request_id: [] for each in asked}
    for each in asked:
        engine.add(each)
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event.logprob)
    return found


@pytest.mark.slow
@settings(max_examples=12)
@given(
    lengths=st.lists(st.sampled_from([9, 33, 50, 64, 65, 100]), min_size=1, max_size=7),
    num_tokens=st.sampled_from([128, 192, 1024]),
    chunk=st.sampled_from([16, 64, 512]),
    are_reproducible=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_reproducible_outputs_depend_neither_on_hits_nor_on_preemption(
    lengths: list[int], num_tokens: int, chunk: int, are_reproducible: list[bool]
) -> None:
    """Bit for bit, also beside requests that are not, which read the same prompts."""
    load_compiled()

    def engine() -> Engine:
        limits = EngineLimits(max_batch_tokens=chunk, kv_cache_bytes=cache_bytes(num_tokens))
        return Engine(limits, tuner=Autotuner())

    asked = [
        shared(
            request(
                prompt(length),
                max_new_tokens=20,
                ignore_eos=True,
                num_logprobs=0,
                reproducible=each,
            )
        )
        for length, each in zip(lengths, are_reproducible, strict=False)
    ]
    together = engine()
    for found in (logprobs(together, *asked), logprobs(together, *asked)):
        for each in asked:
            if each.params.reproducible:
                assert found[each.request_id] == logprobs(engine(), each)[each.request_id]


def test_reproducible_requests_of_models_without_compiled_blocks_read_in_full() -> None:
    load_compiled()
    of = variant(family="gpt2")
    engine = Engine(is_reproducible=True, tuner=Autotuner(always=REPRODUCIBLE))
    for _ in range(2):
        read(engine, shared(request(prompt(LONG), of)))
