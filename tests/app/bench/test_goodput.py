"""Goodput: the highest rate that keeps a promise, on arrivals that do not wait for answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from app.bench import goodput_command, open_loop
from app.bench.goodput import RESOLUTION, Climb, Goodput, GoodputPlan, highest_rate, measure_goodput
from app.bench.goodput_command import Asked, plot, run_goodput, sentences, to_wire
from app.bench.open_loop import (
    Arrival,
    InvalidPromise,
    InvalidTrace,
    Promise,
    Served,
    poisson,
    read_trace,
    serve,
)
from app.bench.plan import AGAIN, DENSE, BenchPlan, BenchSubject
from app.bench.runs import random_requests
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.scheduling.sequence import Request
from app.engine.variant import Variant
from pruning.config import Settings
from tests.support.engine_requests import variant


@pytest.fixture(scope="module")
def tiny_variant() -> Variant:
    return variant()


def up_to(limit: float, *, is_cut_short: bool = False) -> Callable[[float], Served]:
    """Requests keep the promise up to this rate."""

    def served_at(rate: float) -> Served:
        num_kept = 100 if rate <= limit else 90
        is_cut = rate > limit and is_cut_short
        return Served(
            num_kept, 100, 1.0, is_cut_short=is_cut, strain=rate / limit if limit else None
        )

    return served_at


@pytest.mark.parametrize("limit", [0.37, 3.0, 11.0])
@pytest.mark.parametrize("is_cut_short", [True, False])
def test_the_rate_is_bracketed_and_bisected(limit: float, *, is_cut_short: bool) -> None:
    climb = highest_rate(up_to(limit, is_cut_short=is_cut_short), 1.0, 0.99)
    assert limit / RESOLUTION <= climb.goodput <= limit
    assert len({rung.rate for rung in climb.rungs}) <= 12
    for start in (limit * 0.7, limit * 1.01, limit * 1.4):
        near = highest_rate(up_to(limit, is_cut_short=is_cut_short), start, 0.99, step=1.15)
        assert limit / RESOLUTION <= near.goodput <= limit
        assert len({rung.rate for rung in near.rungs}) <= 8


def test_a_later_search_begins_near_the_last_result(
    tiny_variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def served(_variant: Variant, _arrivals: object, rate: float, *_: Any, **__: Any) -> Served:
        rates.append(rate)
        return up_to(100.0)(rate)

    monkeypatch.setattr("app.bench.goodput.serve", served)
    subject = BenchSubject("tiny", tiny_variant, {})
    plan = GoodputPlan(Promise(ttft_s=1.0), [[Arrival(0.0, 1, 1)]] * 2)
    found = measure_goodput(subject, plan, 1.0, lambda *_: None)
    assert all(
        100 / RESOLUTION <= rate <= 100 for side in found.climbs for rate in found.rates(side)
    )
    first = [rung.rate for rung in found.climbs[DENSE][0].rungs]
    assert (first[0], len({*first})) == (1.0, 15)
    others = rates[len(found.climbs) + len(first) :]  # behind the warm-up too
    assert min(others) > 80
    assert len({*others}) <= 3 * 6


def test_a_pause_of_the_machine_does_not_end_a_search() -> None:
    paused: list[float] = []

    def served_at(rate: float) -> Served:
        if rate not in paused:  # the first try of each rate falls into a pause
            paused.append(rate)
            return Served(1, 3, 1.0, is_cut_short=True)
        return up_to(11.0)(rate)

    assert 11.0 / RESOLUTION <= highest_rate(served_at, 1.0, 0.99).goodput <= 11.0


def test_a_promise_that_no_rate_keeps_has_no_goodput() -> None:
    assert highest_rate(lambda _: Served(0, 100, 1.0), 1.0, 0.99).goodput == 0


def test_a_promise_is_read_and_kept() -> None:
    promise = Promise.parse("ttft=500ms,tpot:50")
    assert promise == Promise(ttft_s=0.5, tpot_s=0.05)
    assert Promise.parse("e2e=2s") == Promise.parse("e2el:2000") == Promise(e2e_s=2.0)
    assert str(promise) == "ttft of at most 500 ms, tpot of at most 50 ms"
    for wrong in ("", "ttft", "ttft=0", "ttft=-1", "speed=3", "ttft=1h"):
        with pytest.raises(InvalidPromise, match="ttft=500ms,tpot=50ms"):
            Promise.parse(wrong)


def test_arrivals_are_poisson_and_reproducible() -> None:
    arrivals = poisson(2000, 8, 4, seed=3)
    assert arrivals == poisson(2000, 8, 4, seed=3)
    assert arrivals != poisson(2000, 8, 4, seed=4)
    gaps = [two.at_s - one.at_s for one, two in pairwise(arrivals)]
    assert fmean(gaps) == pytest.approx(1.0, abs=0.1)
    assert stdev(gaps) == pytest.approx(1.0, abs=0.1)


def test_a_trace_is_scaled_to_one_request_a_second(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [(10.0, 5, 2), (12.0, 6, 3), (18.0, 7, 4)]
    keys = ("arrival", "prompt_tokens", "new_tokens")
    trace.write_text("\n".join(json.dumps(dict(zip(keys, line, strict=True))) for line in lines))
    assert read_trace(trace) == [Arrival(0, 5, 2), Arrival(0.5, 6, 3), Arrival(2.0, 7, 4)]
    for wrong in ("", "{}", '{"arrival": 1, "prompt_tokens": 3, "new_tokens": 2}', "x"):
        trace.write_text(wrong)
        with pytest.raises(InvalidTrace, match="expected"):
            read_trace(trace)


def test_each_rate_has_so_many_seconds_of_arrivals(
    tiny_variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[float, int] = {}

    def served(_: Variant, arrivals: Sequence[Arrival], rate: float, *_a: Any, **_b: Any) -> Served:
        numbers[rate] = len(arrivals)
        return up_to(32.0)(rate)

    monkeypatch.setattr("app.bench.goodput.serve", served)
    arrivals = [Arrival(float(at_s), 1, 1) for at_s in range(2000)]
    plan = GoodputPlan(Promise(ttft_s=1.0), [arrivals], 10.0, 50)
    measure_goodput(BenchSubject("tiny", tiny_variant, {}), plan, 1.0, lambda *_: None)
    assert numbers[1.0] == 50
    assert {numbers[rate] for rate in (8.0, 16.0, 32.0)} == {81, 161, 321}
    trace = GoodputPlan(Promise(ttft_s=1.0), [arrivals])
    measure_goodput(BenchSubject("tiny", tiny_variant, {}), trace, 64.0, lambda *_: None)
    assert numbers[64.0] == 2000


def test_requests_arrive_without_waiting_for_answers(tiny_variant: Variant) -> None:
    arrivals = poisson(6, 5, 3, seed=0)
    everything = Promise(ttft_s=1e6, tpot_s=1e6)
    assert serve(tiny_variant, arrivals, 1e6, everything, 0.99).num_kept == 6
    nothing = serve(tiny_variant, arrivals, 1e6, Promise(ttft_s=1e-9), 0.99)
    assert nothing.num_kept == 0


def test_the_report_says_whether_prompts_were_read_in_full(
    tiny_variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = BenchSubject("tiny", tiny_variant, {})
    arrivals = [Arrival(at_s, 2 * PAGE_TOKENS, 1) for at_s in (0.0, 0.01)]
    plan = GoodputPlan(Promise(ttft_s=1e6), [arrivals])

    def reading() -> str:
        found = measure_goodput(subject, plan, 1.0, lambda *_: None)
        told: str = to_wire(found)["prompt_reading"]
        return told

    assert reading() == "in full"
    made = random_requests

    def sharing(*given: Any) -> list[Request]:
        first, *_ = made(*given)
        return [replace(first, request_id=str(at), cache_scope="") for at in range(len(arrivals))]

    monkeypatch.setattr(open_loop, "random_requests", sharing)
    assert reading() == "from cached prefixes"


def test_the_strain_is_what_the_promised_share_does_not_exceed(tiny_variant: Variant) -> None:
    arrivals = poisson(6, 5, 3, seed=0)
    kept = serve(tiny_variant, arrivals, 1e6, Promise(ttft_s=1e6, tpot_s=1e6), 0.99)
    assert kept.strain is not None
    assert 0 < kept.strain < 1
    lost = serve(tiny_variant, arrivals, 1e6, Promise(ttft_s=1e-9), 0.99)
    assert lost.strain is not None
    assert lost.strain > 1
    assert open_loop._strain([0.5, 3.0, *[0.9] * 98], 0.99) == 0.9
    assert open_loop._strain([0.5, 3.0], 0.99) == 3.0
    assert open_loop._strain([], 0.99) is None


def test_a_run_ends_once_the_share_is_out_of_reach(tiny_variant: Variant) -> None:
    arrivals = [Arrival(0.0, 5, 2), Arrival(3600.0, 5, 2)]
    served = serve(tiny_variant, arrivals, 1.0, Promise(ttft_s=1e-9), 0.99)
    assert (served.num_requests, served.is_cut_short) == (1, True)


def goodput(dense: list[float], pruned: list[float]) -> Goodput:
    climbs = {
        side: [Climb(rate, highest_rate(up_to(rate), 1.0, 0.99).rungs) for rate in rates]
        for side, rates in ((DENSE, dense), (AGAIN, dense[::-1]), ("m@-6", pruned))
    }
    return Goodput(GoodputPlan(Promise(ttft_s=0.5), [[]] * len(dense)), {"m@-6": 6}, climbs)


def test_the_report_says_what_the_traffic_is_worth() -> None:
    found = goodput([3.0, 3.1, 3.05], [3.9, 4.0, 3.95])
    pruned, control = sentences(found)
    assert pruned.startswith("dense 3.05, m@-6 3.95 requests/s: 1.30× the traffic (1.2")
    assert pruned.endswith("faster; 4 machines can replace 5")
    assert control.startswith("control: dense 3.05, dense again 3.05 requests/s: 1.00×")
    assert to_wire(found)["goodput"]["m@-6"] == [3.9, 4.0, 3.95]
    assert plot(found).startswith(b"\x89PNG")
    [nothing, _] = sentences(goodput([0.0, 0.0], [1.0, 1.0]))
    assert "no rate meets the latency target for dense and dense again, so there is no" in nothing
    [nothing, control] = sentences(goodput([1.0, 1.0], [0.0, 1.0]))
    assert "no rate meets the latency target for m@-6, so there is no ratio" in nothing
    assert "1.00× the traffic" in control


@pytest.mark.parametrize("has_plots", [True, False])
def test_without_the_extra_of_plots_there_is_a_report_alone(
    tiny_shape: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_plots: bool,
) -> None:
    if not has_plots:
        monkeypatch.setattr("pruning.extras.find_spec", lambda _name: None)
    found = goodput([3.0, 3.1], [3.9, 4.0])
    monkeypatch.setattr(goodput_command, "measure_goodput", lambda *_args: found)
    asked = Asked("ttft=1s", None, 2, 0.0, None, tiny_shape, ("@-2",), "float32")
    plan = BenchPlan(prompt_tokens=4, served_tokens=2, repeats=2)
    run_goodput(asked, plan, tmp_path, Settings(data_dir=tmp_path), as_json=False)
    assert json.loads((tmp_path / "goodput.json").read_text())["goodput"]["m@-6"] == [3.9, 4.0]
    assert (tmp_path / "goodput.png").exists() == has_plots
    assert ("sleb-serve[plots]" in capsys.readouterr().out) != has_plots


@pytest.mark.slow
def test_dense_and_pruned_take_turns(tiny_variant: Variant) -> None:
    subject = BenchSubject("tiny", tiny_variant, {"tiny@-2": (2, 3)})
    arrivals = [poisson(2, 4, 2, seed) for seed in (0, 1)]
    plan = GoodputPlan(Promise(ttft_s=1e-9), arrivals)
    advanced: list[None] = []
    found = measure_goodput(subject, plan, 1e6, lambda *_: advanced.append(None))
    assert found.climbs.keys() == {DENSE, AGAIN, "tiny@-2"}
    assert all(rate == 0 for side in found.climbs for rate in found.rates(side))
    assert len(advanced) == 6
