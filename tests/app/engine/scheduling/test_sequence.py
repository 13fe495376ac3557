import math
from typing import Any

import pytest

from app.engine.scheduling.sequence import (
    FinishReason,
    InvalidSampling,
    SamplingParams,
    Sequence,
    Timings,
    TokenEvent,
)
from tests.support.engine_requests import request


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 10**9),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e6),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.01),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", math.inf),
        ("presence_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((1, math.nan),)),
        ("num_logprobs", -1),
        ("num_logprobs", 21),
        ("top_k", 10**9),
        ("seed", -1),
        ("seed", 2**63),
        ("stop_token_ids", frozenset({3, -1})),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidSampling, match=f"{param}=.*expected") as refusal:
        SamplingParams(**{param: value})
    assert refusal.value.param == param


def test_the_ends_of_the_ranges_are_valid() -> None:
    SamplingParams(max_new_tokens=1, temperature=0, top_p=1e-9, top_k=0, seed=0)
    SamplingParams(max_new_tokens=10**6, temperature=100, top_p=1, top_k=10**6, seed=2**63 - 1)
    SamplingParams(min_p=0, repetition_penalty=0.1, num_logprobs=0)
    SamplingParams(min_p=1, repetition_penalty=2, num_logprobs=20)


def test_no_temperature_is_greedy_and_so_is_almost_none() -> None:
    assert SamplingParams().is_greedy
    assert SamplingParams(temperature=1e-30).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


def test_timings_are_the_durations_between_the_moments() -> None:
    timings = Timings(
        arrived_s=1.0, scheduled_s=1.5, first_token_s=2.0, finished_s=5.0, num_tokens=4
    )
    assert (timings.queue_s, timings.ttft_s, timings.tpot_s, timings.e2e_s) == (0.5, 1.0, 1.0, 4.0)


def test_there_is_no_time_per_token_for_one_token() -> None:
    timings = Timings(
        arrived_s=1.0, scheduled_s=1.5, first_token_s=2.0, finished_s=2.0, num_tokens=1
    )
    assert timings.tpot_s is None


def test_a_request_that_never_ran_was_queued_all_the_time() -> None:
    timings = Timings(
        arrived_s=1.0, scheduled_s=None, first_token_s=None, finished_s=4.0, num_tokens=0
    )
    assert (timings.queue_s, timings.ttft_s, timings.tpot_s, timings.e2e_s) == (
        3.0,
        None,
        None,
        3.0,
    )


def test_timings_keep_the_kernels_that_ran_until_then() -> None:
    seq = Sequence(request(), None)
    seq.kernels["head of 1"] = "torch"
    timings = seq.timings(1.0)
    seq.kernels["head of 1"] = "compiled"
    assert timings.kernels == {"head of 1": "torch"}
    assert Timings(0.0, None, None, 1.0, 0).kernels == {}


def test_the_token_that_stops_a_sequence_is_no_text() -> None:
    assert TokenEvent("a", 5).is_text
    assert TokenEvent("a", 5, FinishReason.LENGTH).is_text
    assert not TokenEvent("a", 5, FinishReason.STOP).is_text
    assert not TokenEvent("a", None, FinishReason.ABORT).is_text
    assert not TokenEvent("a", None, FinishReason.TIMEOUT).is_text
