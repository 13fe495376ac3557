import pytest

from app.engine.scheduling.admission import Admission, Overloaded
from app.engine.scheduling.sequence import (
    FinishReason,
    Request,
    RequestRefused,
    Timings,
    TokenEvent,
)
from tests.support.engine_requests import prompt, request


def asking(num_prompt: int = 10, max_new_tokens: int = 10) -> Request:
    return request(prompt(num_prompt), max_new_tokens=max_new_tokens)


def token(each: Request) -> TokenEvent:
    return TokenEvent(each.request_id, 5)


def end(each: Request, num_tokens: int, reason: FinishReason = FinishReason.STOP) -> TokenEvent:
    """Its last event; with STOP there is one more token."""
    timings = Timings(0.0, 0.0 if num_tokens else None, None, 1.0, num_tokens)
    return TokenEvent(each.request_id, 5 if reason is FinishReason.STOP else None, reason, timings)


def test_requests_are_counted_until_they_end() -> None:
    admission = Admission(max_open=2, max_waiting_tokens=1000)
    first, second = asking(), asking()
    admission.admit([first])
    admission.admit([second])
    with pytest.raises(Overloaded, match="2 requests running or waiting; 1 more") as refusal:
        admission.admit([asking()])
    assert refusal.value.reason == "queue_full"
    admission.take([token(first)], busy_s=0.1)
    with pytest.raises(Overloaded, match="2 requests running or waiting; 1 more"):
        admission.admit([asking()])
    admission.take([end(first, 2)], busy_s=0.1)
    admission.admit([asking()])


def test_tokens_are_counted_until_the_first_one_is_generated() -> None:
    admission = Admission(max_open=100, max_waiting_tokens=50)
    first = asking()
    admission.admit([first])
    admission.admit([asking()])
    with pytest.raises(Overloaded, match="40 tokens are waiting, more than the limit") as refusal:
        admission.admit([asking()])
    assert refusal.value.reason == "queue_tokens_full"
    admission.take([token(first)], busy_s=0.1)
    assert admission.num_waiting_tokens == 20
    admission.admit([asking()])


def test_a_group_comes_in_whole_or_not_at_all() -> None:
    admission = Admission(max_open=3, max_waiting_tokens=1000)
    admission.admit([asking(), asking()])
    with pytest.raises(Overloaded):
        admission.admit([asking(), asking()])
    assert admission.num_waiting_tokens == 40
    admission.admit([asking()])


def test_a_group_larger_than_the_line_ever_is_is_refused_for_good() -> None:
    with pytest.raises(RequestRefused, match=r"the request has 4.* allows at most 3"):
        Admission(max_open=3, max_waiting_tokens=1000).admit([asking() for _ in range(4)])


def test_an_empty_line_takes_what_is_larger_than_the_line() -> None:
    admission = Admission(max_open=3, max_waiting_tokens=50)
    large = asking(num_prompt=100)
    admission.admit([large])
    with pytest.raises(Overloaded):
        admission.admit([asking(1, 1)])
    admission.take([token(large)], busy_s=0.1)
    admission.admit([asking(100)])


def test_a_request_that_leaves_the_queue_makes_room_and_no_pace() -> None:
    admission = Admission(max_open=3, max_waiting_tokens=50)
    first, second = asking(), asking()
    admission.admit([first, second])
    admission.take([end(first, 0, FinishReason.ABORT)], busy_s=1.0)
    assert admission.num_waiting_tokens == 20
    assert admission.retry_after_s == 1.0  # as before any token


def test_when_to_retry_is_how_long_the_backlog_takes_at_the_pace_of_late() -> None:
    admission = Admission(max_open=10, max_waiting_tokens=100_000)
    running = asking(num_prompt=100, max_new_tokens=50)
    admission.admit([running])
    admission.take([token(running)], busy_s=1.0)  # 101 tokens: the prompt is read too
    for _ in range(9):
        admission.take([token(running)], busy_s=1.0)
    admission.admit([asking(num_prompt=190, max_new_tokens=30)])
    per_s, left = 110 / 10, 40 + 220  # what runs has 40 tokens to go
    assert admission.retry_after_s == pytest.approx(left / per_s, rel=0.2)
    admission.take([end(running, 50, FinishReason.LENGTH)], busy_s=0.0)
    assert admission.retry_after_s == pytest.approx(220 / per_s, rel=0.2)


def test_before_any_token_a_full_queue_asks_for_some_seconds() -> None:
    admission = Admission(max_open=320, max_waiting_tokens=1_000_000)
    for _ in range(100):
        admission.admit([asking(num_prompt=100, max_new_tokens=100)])
    for _ in range(220):
        admission.reserve(1)
    assert 5 <= admission.retry_after_s <= 60
    with pytest.raises(Overloaded, match="320 requests running or waiting"):
        admission.reserve(1)


def test_a_reserved_place_is_taken_until_it_is_released() -> None:
    admission = Admission(max_open=3, max_waiting_tokens=1000)
    with admission.reserve(2) as places:
        with pytest.raises(Overloaded):
            admission.admit([asking(), asking()])
        admission.admit([asking()])
        with pytest.raises(Overloaded):
            admission.reserve(1)
        places.close()
        admission.admit([asking(), asking()])
    with pytest.raises(Overloaded, match="3 requests running or waiting"):
        admission.reserve(1)  # nothing was released twice


def test_an_answer_that_ends_early_has_done_all_that_was_reserved_for_it() -> None:
    admission = Admission(max_open=10, max_waiting_tokens=100_000)
    running = asking(num_prompt=100, max_new_tokens=400)
    admission.admit([running])
    admission.take([end(running, 1)], busy_s=10.0)
    admission.admit([asking(num_prompt=400, max_new_tokens=100)])
    assert admission.retry_after_s == pytest.approx(10.0)


def test_an_old_pace_is_forgotten() -> None:
    admission = Admission(max_open=10, max_waiting_tokens=100_000)
    running = asking(num_prompt=100, max_new_tokens=8_500)
    admission.admit([running])
    for _ in range(60):
        admission.take([token(running) for _ in range(100)], busy_s=1.0)
    admission.admit([asking(num_prompt=400, max_new_tokens=100)])
    assert admission.retry_after_s == pytest.approx((2500 + 500) / 100, rel=0.1)
    for _ in range(120):
        admission.take([token(running) for _ in range(20)], busy_s=1.0)
    assert admission.retry_after_s == pytest.approx((100 + 500) / 20, rel=0.1)


def test_when_to_retry_is_never_more_than_a_minute() -> None:
    admission = Admission(max_open=10, max_waiting_tokens=100_000)
    running = asking()
    admission.admit([running])
    admission.take([token(running)], busy_s=100.0)
    admission.admit([asking(num_prompt=50_000)])
    assert admission.retry_after_s == 60.0
