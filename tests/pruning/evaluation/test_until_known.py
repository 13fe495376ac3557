"""An evaluation from its first windows to its end, on simulated losses whose ratio is known.

Each setting says how often the interval at the end has the true ratio, and how often a model that
is exactly at the limit of a gate is kept.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.estimate import Strata
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.evaluation.verdict import Verdict
from pruning.spec.evaluation import FIRST_WINDOWS, Evaluation
from pruning.student_t import quantile

AVAILABLE = 384
NATS = 0.3  # lost, as without four blocks of the demo model
SPREAD = 0.2  # of the lost nats over windows
LIMIT = math.exp(NATS)  # the worst case: the model is exactly at the limit

Draw = Callable[[random.Random], list[float]]  # standardized gaps of all windows


def normal(rng: random.Random) -> list[float]:
    return [rng.gauss(0.0, 1.0) for _ in range(AVAILABLE)]


def skewed(rng: random.Random) -> list[float]:
    """With a long tail, as a few windows lose most."""
    return [rng.expovariate(1.0) - 1.0 for _ in range(AVAILABLE)]


def clustered(rng: random.Random) -> list[float]:
    """Four windows of each document have a fifth of the variance in common."""
    documents = [rng.gauss(0.0, math.sqrt(0.2)) for _ in range(AVAILABLE // 4)]
    return [documents[at // 4] + rng.gauss(0.0, math.sqrt(0.8)) for at in range(AVAILABLE)]


DOCUMENTS = tuple(str(at // 4) for at in range(AVAILABLE))


@dataclass(frozen=True)
class Outcome:
    holds: bool  # whether the interval has the true ratio
    verdict: Verdict  # of the limit


def evaluated(gaps: list[float], strata: Strata, *, is_gated: bool) -> Outcome:
    """One depth, with windows added until the margin is known, or until a gate is decided."""

    def undecided(domains: Sequence[DomainQuality]) -> int | None:
        [domain] = domains
        verdict = Verdict.of(domain.ratio(domain.raw[0]), LIMIT)
        return 1 if is_gated and verdict is Verdict.UNDECIDED else None

    margin = 0.99 if is_gated else 0.05
    until = UntilKnown(Evaluation(margin=margin), undecided, lambda: 0.0)
    size = FIRST_WINDOWS
    while size:
        dense = [4.0] * size
        losses = [4.0 + NATS + SPREAD * gap for gap in gaps[:size]]
        measured = Measured.against(dense, losses, strata)
        domain = DomainQuality("d", "", size, 64, "", Measured.of_dense(dense), (measured,))
        size = until.next_sizes([domain], {"d": AVAILABLE}).get("d", 0)
    ratio = domain.ratio(measured)
    assert ratio.low is not None
    assert ratio.high is not None
    return Outcome(ratio.low <= LIMIT <= ratio.high, Verdict.of(ratio, LIMIT))


@pytest.mark.parametrize("is_gated", [False, True], ids=["by margin", "by the gate"])
@pytest.mark.parametrize("draw", [normal, skewed, clustered])
def test_intervals_hold_the_ratio_and_few_models_at_the_limit_are_kept(
    draw: Draw, is_gated: bool
) -> None:
    rng, tries = random.Random(0), 300
    strata = Strata(documents=DOCUMENTS if draw is clustered else ())
    found = [evaluated(draw(rng), strata, is_gated=is_gated) for _ in range(tries)]
    num_held = sum(each.holds for each in found)
    num_kept = sum(each.verdict is Verdict.KEPT for each in found)
    # 0.94 and 0.025, each within two standard errors of so many tries
    assert num_held / tries >= 0.94 - 2 * math.sqrt(0.94 * 0.06 / tries)
    assert num_kept / tries <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / tries)


def test_the_simulation_would_see_intervals_for_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Student's t: the limit is passed several times as often as 2.5 %."""
    monkeypatch.setattr(
        "pruning.evaluation.quality.reach", lambda degrees: quantile(0.975, degrees)
    )
    rng, tries = random.Random(0), 300
    found = [evaluated(skewed(rng), Strata(), is_gated=True) for _ in range(tries)]
    assert sum(each.verdict is Verdict.KEPT for each in found) / tries > 0.1
