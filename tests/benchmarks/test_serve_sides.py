"""Sides of the serving benchmark: equal requests and counted tokens."""

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from app.engine.engine import Engine
from app.engine.scheduling.sequence import TokenEvent
from app.engine.step import NEVER, Interruption
from app.engine.variant import Variant, make_variant
from benchmarks.latencies import Pass, RequestTiming, ratio, run_in_turn
from benchmarks.offline import (
    WrongLength,
    checked_timing,
    run_engine,
    run_sequential,
    run_static,
)
from benchmarks.workload import NoSuchPrompt, Prompts, SampleRequest
from pruning.models.store import LoadedModel


@pytest.fixture(scope="module")
def dense(tiny_loaded: LoadedModel) -> Variant:
    return make_variant("tiny", "tiny", tiny_loaded.model)


@pytest.fixture
def prompts(tiny_loaded: LoadedModel) -> Prompts:
    return Prompts(tiny_loaded.tokenizer, seed=0)


@pytest.mark.parametrize("concurrency", [1, 2, 5, 9])
def test_every_token_of_the_engine_is_counted(
    dense: Variant, prompts: Prompts, concurrency: int
) -> None:
    generated: list[TokenEvent] = []
    num_active: list[int] = []

    class Counting(Engine):
        def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
            num_active.append(self.stats().num_running + self.stats().num_waiting)
            events = super().step(interruption)
            generated.extend(event for event in events if event.token_id is not None)
            return events

    requests = prompts.mixed(7, (3, 12), (2, 9))
    found = run_engine(dense, requests, concurrency, Counting)
    assert found.num_tokens == len(generated) == sum(request.num_new_tokens for request in requests)
    assert max(num_active) == min(concurrency, 7)
    for number, timing in enumerate(found.timings):
        events = [event for event in generated if event.request_id == str(number)]
        assert (
            timing.num_tokens
            == len(timing.received_s)
            == len(events)
            == requests[number].num_new_tokens
        )
        assert timing.sent_s < timing.received_s[0]
        assert list(timing.received_s) == sorted(timing.received_s)


def test_generate_counts_what_was_asked_for(dense: Variant, prompts: Prompts) -> None:
    requests = prompts.mixed(5, (3, 12), (2, 9))
    lengths = [request.num_new_tokens for request in requests]
    static = run_static(dense.model, requests, batch_size=2)
    assert [timing.num_tokens for timing in static.timings] == lengths
    ends_s = [timing.received_s[0] for timing in static.timings]
    assert ends_s[0] == ends_s[1] < ends_s[2] == ends_s[3] < ends_s[4]
    single = run_sequential(dense.model, requests)
    assert [len(timing.received_s) for timing in single.timings] == lengths


def test_an_answer_of_another_length_is_an_error(prompts: Prompts) -> None:
    (request,) = prompts.uniform(1, 8, 3)
    assert checked_timing(0.0, [1.0, 2.0, 3.0], request).num_tokens == 3
    assert checked_timing(0.0, [1.0], request, 3).num_tokens == 3
    with pytest.raises(WrongLength, match="expected 3 tokens, got 2"):
        checked_timing(0.0, [1.0, 2.0], request)


def test_sides_take_turns_after_a_short_one_each(prompts: Prompts) -> None:
    turns: list[tuple[str, int]] = []

    def side(name: str, requests: Sequence[SampleRequest]) -> Pass:
        turns.append((name, sum(request.num_new_tokens for request in requests)))
        return Pass(1.0, (RequestTiming(0.0, (1.0,), 1),))

    sides = {name: lambda requests, name=name: side(name, requests) for name in ("a", "b")}
    found = run_in_turn(sides, prompts.uniform(3, 8, 5), repeats=2)
    assert turns == [("a", 6), ("b", 6), ("a", 15), ("b", 15), ("b", 15), ("a", 15)]
    assert {name: len(passes) for name, passes in found.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_turns_beside_each_other() -> None:
    timings = (RequestTiming(0.0, (1.0,), 10),)
    ours = [Pass(seconds, timings) for seconds in (1.0, 4.0, 2.0)]  # as the machine slows down
    theirs = [Pass(seconds, timings) for seconds in (2.0, 8.0, 1.0)]
    assert ratio({"ours": ours, "theirs": theirs}, "ours", "theirs") == 2.0
    assert ratio({"ours": ours}, "ours", "theirs") is None


def test_prompts_have_exactly_the_tokens_that_their_text_has(
    tiny_loaded: LoadedModel, prompts: Prompts
) -> None:
    requests = prompts.mixed(40, (1, 30), (2, 4))
    assert {len(request.prompt_ids) for request in requests} <= set(range(1, 31))
    assert len({request.prompt_ids for request in requests}) > 20
    for request in requests:
        assert tuple(tiny_loaded.tokenizer(request.text).input_ids) == request.prompt_ids
    assert Prompts(tiny_loaded.tokenizer, seed=0).mixed(40, (1, 30), (2, 4)) == requests
    other = Prompts(tiny_loaded.tokenizer, seed=1).mixed(40, (1, 30), (2, 4))
    assert other != requests


def test_a_tokenizer_without_words_makes_no_prompts() -> None:
    wordless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, "?")))
    with pytest.raises(NoSuchPrompt, match="no tokens that are words"):
        Prompts(wordless, seed=0)
