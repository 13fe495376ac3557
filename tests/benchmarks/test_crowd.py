"""The benchmark of crowds counts what runs at once, and what has to make room."""

from app.engine.autotuning import OFF
from app.engine.cache.pages import PAGE_TOKENS
from benchmarks.crowd import Found, watched
from benchmarks.workload import SampleRequest
from tests.support.engine_requests import prompt, variant

LONG, SHORT, OUTPUT = 6 * PAGE_TOKENS, 8, PAGE_TOKENS
SAMPLES = [SampleRequest("", prompt(length), OUTPUT) for length in (LONG, SHORT, SHORT, SHORT)]


def found_within(num_tokens: int) -> Found:
    return watched(variant(), SAMPLES, num_tokens, OFF)


def test_all_run_at_once_where_their_tokens_have_room() -> None:
    found = found_within(LONG + 7 * PAGE_TOKENS)
    assert (found.requests, found.most_running, found.whole_outputs) == (4, 4, 4)
    assert found.preemptions == 0
    assert found.all_running_s is not None
    assert found.all_running_s <= found.seconds


def test_what_never_runs_beside_all_others_is_told() -> None:
    found = found_within(LONG + OUTPUT)
    assert found.most_running == 3
    assert found.all_running_s is None
    assert found.whole_outputs == 4


def test_sequences_that_make_room_are_counted_and_end_all_the_same() -> None:
    samples = [SampleRequest("", prompt(SHORT), 2 * OUTPUT)] * 4
    found = watched(variant(), samples, 8 * PAGE_TOKENS, OFF)
    assert (found.most_running, found.whole_outputs) == (4, 4)
    assert found.preemptions > 0
