"""An evaluation from its first windows to its end, on simulated losses whose ratios are known."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import pytest

from pruning.evaluation.enough import FIRST_WINDOWS, UntilKnown
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.evaluation.results import Ended
from pruning.spec.evaluation import Evaluation

AVAILABLE = 512
# of each depth, as the demo measures prose: nats over the dense model, their spread over windows,
# and how they go together with those of the deepest
NATS = (0.03, 0.09, 0.22, 0.30, 0.42, 0.46)
SPREADS = (0.07, 0.13, 0.19, 0.19, 0.27, 0.29)
TOGETHER = (0.4, 0.6, 0.75, 0.85, 0.95, 1.0)

Draw = Callable[[random.Random], float]


def normal(rng: random.Random) -> float:
    return rng.gauss(0.0, 1.0)


def skewed(rng: random.Random) -> float:
    """With a long tail, as a few windows lose most."""
    return rng.gammavariate(2.0, 1 / math.sqrt(2)) - math.sqrt(2)


def window(rng: random.Random, draw: Draw) -> list[float]:
    """The losses of the dense model and of each depth."""
    dense, common = rng.gauss(3.9, 0.6), draw(rng)
    gaps = (
        nats + spread * (share * common + math.sqrt(1 - share**2) * draw(rng))
        for nats, spread, share in zip(NATS, SPREADS, TOGETHER, strict=True)
    )
    return [dense, *(dense + gap for gap in gaps)]


@dataclass(frozen=True)
class Outcome:
    num_losses: int
    held: list[bool]  # whether the interval of each depth has the true ratio


def evaluated(windows: Sequence[Sequence[float]], *, has_control: bool) -> Outcome:
    deepest = len(NATS)
    until = UntilKnown(Evaluation(margin=0.05), lambda _domains: None, lambda: 0.0)
    sizes = dict.fromkeys(range(1, deepest + 1), FIRST_WINDOWS)
    while True:
        losses = {depth: [each[depth] for each in windows[:size]] for depth, size in sizes.items()}
        dense = [each[0] for each in windows[: max(sizes.values())]]
        control = losses[deepest] if has_control else ()
        served = tuple(Measured.against(dense, losses[depth], control) for depth in sizes)
        domain = DomainQuality("d", "text", len(dense), 64, "", Measured.of_dense(dense), served)
        more = until.next_sizes([domain], {"d": AVAILABLE})
        if not more:
            break
        sizes |= more["d"]
    assert until.extent is not None
    assert until.extent.ended is Ended.MARGIN
    intervals = [domain.ratio(each) for each in served]
    for interval in intervals:
        assert interval.high is not None
        assert interval.high <= 1.05 * interval.value
    held = [
        abs(math.log(interval.value) - nats) <= math.log((interval.high or 0.0) / interval.value)
        for interval, nats in zip(intervals, NATS, strict=True)
    ]
    return Outcome(len(dense) + sum(sizes.values()), held)


@pytest.mark.parametrize("draw", [normal, skewed])
def test_its_intervals_hold_the_ratios_and_a_control_saves_windows(draw: Draw) -> None:
    rng, plain, controlled = random.Random(0), [], []
    for _ in range(40):
        windows = [window(rng, draw) for _ in range(AVAILABLE)]
        plain.append(evaluated(windows, has_control=False))
        controlled.append(evaluated(windows, has_control=True))
    saved = 1 - fmean(one.num_losses for one in controlled) / fmean(one.num_losses for one in plain)
    assert saved > 0.15
    # 240 intervals, of which six each belong together: 0.95 within three standard errors
    assert fmean(held for one in controlled for held in one.held) > 0.90
