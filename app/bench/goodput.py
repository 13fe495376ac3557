"""Goodput: the highest request rate at which a share of the requests keeps a promise.

Dense and pruned models take turns, each on the same arrivals, with a second dense model as the
control. The rate rises until the promise is broken, and is then bisected.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.bench.open_loop import Arrival, Served, serve
from app.bench.plan import AGAIN, DENSE, HALF, BenchSubject
from app.bench.promise import Promise
from app.compare.speedup import Speedup, alternate, beyond_noise, speedup

NUM_BISECTIONS = 5  # a rate is then known to 2 %
_MAX_DOUBLINGS = 20
SHARE = 0.99


@dataclass(frozen=True)
class GoodputPlan:
    """What is promised, and on which load. ``arrivals`` has one list for each repeat."""

    promise: Promise
    arrivals: Sequence[Sequence[Arrival]]
    share: float = SHARE
    seed: int = 0


@dataclass(frozen=True)
class Rung:
    """One request rate, in requests a second, and how many requests kept the promise."""

    rate: float
    served: Served


@dataclass(frozen=True)
class Climb:
    """One search for the goodput: the highest rate that kept the promise, 0 if none did."""

    goodput: float
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class Goodput:
    """The searches of each side, one for each repeat."""

    plan: GoodputPlan
    removed: Mapping[str, int]  # by the name of a variant
    climbs: Mapping[str, Sequence[Climb]]

    def rates(self, side: str) -> list[float]:
        return [climb.goodput for climb in self.climbs[side]]

    def gain(self, side: str) -> Speedup | None:
        """Requests of a side for each of the dense model. None if one kept no promise."""
        dense = self.rates(DENSE)
        if min(*dense, *self.rates(side), *self.rates(AGAIN)) <= 0:
            return None
        found = speedup(self.rates(side), dense)
        return found if side == AGAIN else beyond_noise(found, speedup(self.rates(AGAIN), dense))


def highest_rate(
    served_at: Callable[[float], Served], start: float, share: float, max_rate: float = math.inf
) -> Climb:
    """The highest rate at which ``share`` of the requests keeps the promise.

    It doubles from ``start`` on until they do not, or halves until they do, and is then bisected.
    """
    rungs: list[Rung] = []

    def is_kept(rate: float) -> bool:
        served = served_at(rate)
        rungs.append(Rung(rate, served))
        return not served.is_cut_short and served.share >= share

    good, bad, rate = 0.0, 0.0, start
    for _ in range(_MAX_DOUBLINGS):
        if is_kept(rate):
            good = rate
        else:
            bad = rate
        if good and (bad or rate >= max_rate):
            break
        rate = min(max_rate, 2 * rate) if good else rate / 2
    for _ in range(NUM_BISECTIONS if good and bad else 0):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if is_kept(middle) else (good, middle)
    return Climb(good, tuple(rungs))


def measure_goodput(
    subject: BenchSubject, plan: GoodputPlan, start: float, advance: Callable[[], None]
) -> Goodput:
    """Every side on the arrivals of every repeat, in alternating turns."""
    sides = {name: side for name, side in subject.sides().items() if name != HALF}
    climbs: dict[str, list[Climb]] = {name: [] for name in sides}
    for _, name in alternate(list(sides), len(plan.arrivals)):
        arrivals = plan.arrivals[len(climbs[name])]

        def served_at(
            rate: float, name: str = name, arrivals: Sequence[Arrival] = arrivals
        ) -> Served:
            given = (sides[name], arrivals, rate, plan.promise, plan.share)
            return serve(*given, seed=plan.seed, tuner=subject.tuner)

        climbs[name].append(highest_rate(served_at, start, plan.share))
        advance()
    removed = {name: len(blocks) for name, blocks in subject.removed.items()}
    return Goodput(plan, removed, climbs)
