"""What the last pairs of replays show: equal models read 1, and noise gives no verdict."""

import random
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry

from app.compare.shadow import MAX_PAIRS, ShadowTimes, TimedReplay
from app.compare.speedup import EQUAL_WITHIN, Verdict
from app.engine.scheduling.scheduler import BACKGROUND_CHUNK
from app.engine.scheduling.sequence import FinishReason, Timings
from app.generation.output import Output
from app.metrics.shadow import ShadowMetrics, ShadowPair

PAIR, CONTROL = ShadowPair("m", "m@-6"), ShadowPair("m", "m")
NUM_TOKENS = 11
LABELS = {"live_model": "m", "shadow_model": "m@-6"}


def replay(
    tpot_s: float,
    *,
    was_alone: bool = True,
    kernels: Mapping[str, str] | None = None,
    num_prompt_tokens: int = 8,
) -> TimedReplay:
    end_s = 1.0 + (NUM_TOKENS - 1) * tpot_s
    timings = Timings(0.0, 0.5, 1.0, end_s, NUM_TOKENS, 1.0, was_alone, kernels or {})
    output = Output("", FinishReason.LENGTH, num_prompt_tokens, NUM_TOKENS, (), timings)
    return TimedReplay("dense", output)


class Replays:
    """Pairs of made-up times, and the metrics of them."""

    def __init__(self, *, is_live_baseline: bool = True) -> None:
        self.registry = CollectorRegistry()
        self.times = ShadowTimes(ShadowMetrics(self.registry), is_live_baseline=is_live_baseline)
        self._draw = random.Random(0)

    def add(self, pair: ShadowPair, ratio: float = 1.0, noise: float = 0.02) -> None:
        live_s, shadow_s = (0.1 * self._draw.lognormvariate(0, noise) for _ in range(2))
        self.times.add(pair, replay(live_s * ratio), replay(shadow_s))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"sleb_shadow_{name}", labels)

    def bound(self, bound: str) -> float:
        value = self.value("speedup", **LABELS, time="tpot", bound=bound)
        assert value is not None
        return value

    def verdicts(self) -> list[str]:
        names = [each.value for each in Verdict]
        return [n for n in names if self.value("verdict", **LABELS, time="tpot", verdict=n)]


def test_a_speed_up_beyond_the_control_has_a_verdict() -> None:
    replays = Replays()
    for _ in range(30):
        replays.add(PAIR, 1.2)
    assert replays.verdicts() == ["undecided"]  # nothing says what equal models read
    for _ in range(5):
        replays.add(CONTROL)
    assert replays.verdicts() == ["faster"]
    assert 1.15 < replays.bound("low") < replays.bound("ratio") < replays.bound("high") < 1.25
    assert replays.value("speedup_pairs", **LABELS, time="tpot") == 30
    for _ in range(40):
        replays.add(CONTROL, noise=1.5)
    assert replays.verdicts() == ["undecided"]  # equal models read as much


@pytest.mark.parametrize("seed", range(20))
def test_equal_models_read_one_and_are_never_faster(seed: int) -> None:
    replays = Replays()
    replays._draw.seed(seed)
    for _ in range(60):
        replays.add(PAIR)
        replays.add(CONTROL)
    assert replays.bound("ratio") == pytest.approx(1.0, abs=EQUAL_WITHIN)
    assert replays.verdicts() in (["no difference"], ["undecided"])
    control = replays.value("control_speedup", live_model="m", time="tpot", bound="ratio")
    assert control == pytest.approx(1.0, abs=EQUAL_WITHIN)


def test_a_control_is_no_part_of_what_is_compared() -> None:
    replays = Replays()
    replays.add(CONTROL)
    names = {sample.name for each in replays.registry.collect() for sample in each.samples}
    assert names == {"sleb_shadow_control_pairs", "sleb_shadow_control_speedup"}


def test_the_counterpart_may_be_the_baseline() -> None:
    replays = Replays(is_live_baseline=False)
    replays.add(PAIR, 1.25, noise=0.0)
    assert replays.bound("ratio") == pytest.approx(1 / 1.25)


def test_different_kernels_are_counted_and_give_no_verdict() -> None:
    replays = Replays()
    for _ in range(20):
        replays.add(PAIR, 1.2)
        replays.add(CONTROL)
    assert replays.verdicts() == ["faster"]
    ratio = replays.bound("ratio")
    compiled, torch = ({"blocks, decode of 1": kernel} for kernel in ("compiled", "torch"))
    replays.times.add(PAIR, replay(9.0, kernels=torch), replay(0.1, kernels=compiled))
    assert replays.value("different_kernels_total", **LABELS) == 1
    assert replays.verdicts() == ["undecided"]
    assert replays.bound("ratio") == ratio
    replays.times.add(PAIR, replay(0.12, kernels=torch), replay(0.1, kernels=torch))
    assert replays.verdicts() == ["faster"]  # the last pair is comparable again


def test_only_replays_that_were_alone_are_timed() -> None:
    replays = Replays()
    replays.times.add(PAIR, replay(9.0, was_alone=False), replay(0.1))
    replays.times.add(PAIR, replay(0.1), replay(9.0, was_alone=False))
    assert replays.value("speedup_pairs", **LABELS, time="tpot") is None


def test_the_first_token_of_a_long_prompt_is_not_timed() -> None:
    replays = Replays()
    long = [replay(0.1, num_prompt_tokens=BACKGROUND_CHUNK + 1) for _ in range(2)]
    replays.times.add(PAIR, *long)
    assert replays.value("speedup_pairs", **LABELS, time="tpot") == 1
    assert replays.value("speedup_pairs", **LABELS, time="prefill") is None


def test_old_pairs_are_forgotten() -> None:
    replays = Replays()
    for _ in range(MAX_PAIRS):
        replays.add(PAIR, 3.0, noise=0.0)
    for _ in range(MAX_PAIRS):
        replays.add(PAIR, 1.5, noise=0.0)
    assert replays.bound("ratio") == pytest.approx(1.5)
    assert replays.value("speedup_pairs", **LABELS, time="tpot") == MAX_PAIRS
