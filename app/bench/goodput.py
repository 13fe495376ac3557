"""Goodput: the highest request rate at which a share of the requests keeps a promise.

Dense and pruned models take turns, each on the same arrivals, with a second dense model as the
control. The rate rises until the promise is broken, and is then bisected. Later searches begin near
the last result, which saves rates to try and changes none of the results.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.bench.open_loop import Arrival, Promise, Served, serve, within
from app.bench.plan import AGAIN, DENSE, HALF, BenchSubject
from app.compare.speedup import Speedup, alternate, beyond_noise, speedup

RESOLUTION = 1.01  # of a rate
_FAR, _NEAR = 2.0, 1.15  # the first step from a rate that is a guess, and from one nearby
_MAX_STEPS = 20
_TRIES = 2  # of a rate: a pause of the machine breaks a promise too
_WARM_UP_S = 5.0  # of arrivals, at a rate that is a guess
SHARE = 0.99


@dataclass(frozen=True)
class GoodputPlan:
    """What is promised, and on which load. ``arrivals`` has one list for each repeat.

    At each rate, so many seconds of them are served. An equal number of requests would be over the
    sooner the higher the rate, and a queue that grows would not be seen.
    """

    promise: Promise
    arrivals: Sequence[Sequence[Arrival]]
    seconds: float = math.inf
    num_requests: int = 1  # at least
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
        ratio = speedup(self.rates(side), dense)
        return ratio if side == AGAIN else beyond_noise(ratio, speedup(self.rates(AGAIN), dense))


def highest_rate(
    served_at: Callable[[float], Served],
    start: float,
    share: float,
    step: float = _FAR,
) -> Climb:
    """The highest rate at which ``share`` of the requests keeps the promise.

    It rises from ``start`` on until they do not, or falls until they do, by ``step`` and then in
    longer steps, and is then bisected. A rate that breaks the promise is tried again.
    """
    rungs: list[Rung] = []

    def is_kept(rate: float) -> bool:
        return any(is_kept_once(rate) for _ in range(_TRIES))

    def is_kept_once(rate: float) -> bool:
        served = served_at(rate)
        rungs.append(Rung(rate, served))
        return not served.is_cut_short and served.share >= share

    good, bad, rate = 0.0, 0.0, start
    for _ in range(_MAX_STEPS):
        if is_kept(rate):
            good = rate
        else:
            bad = rate
        if good and bad:
            break
        rate = step * rate if good else rate / step
        step = min(_FAR, step**2)
    while good and bad > RESOLUTION * good:
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if is_kept(middle) else (good, middle)
    return Climb(good, tuple(rungs))


def measure_goodput(
    subject: BenchSubject, plan: GoodputPlan, start: float, observe: Callable[[str, float], None]
) -> Goodput:
    """Every side on the arrivals of every repeat, in alternating turns.

    ``observe`` is called after each search, with its side and the goodput.
    """
    sides = {name: side for name, side in subject.sides().items() if name != HALF}
    climbs: dict[str, list[Climb]] = {name: [] for name in sides}
    for side in sides.values():  # so that kernels are chosen before anything counts
        part = within(plan.arrivals[0], start * min(_WARM_UP_S, plan.seconds), 1)
        serve(side, part, start, Promise(e2e_s=math.inf), plan.share, tuner=subject.tuner)
    for _, name in alternate(list(sides), len(plan.arrivals)):
        arrivals = plan.arrivals[len(climbs[name])]

        def served_at(
            rate: float, name: str = name, arrivals: Sequence[Arrival] = arrivals
        ) -> Served:
            part = within(arrivals, rate * plan.seconds, plan.num_requests)
            promised = (rate, plan.promise, plan.share)
            return serve(sides[name], part, *promised, seed=plan.seed, tuner=subject.tuner)

        near = _last(climbs[name]) or _last(climbs[DENSE])
        climb = highest_rate(served_at, near or start, plan.share, step=_NEAR if near else _FAR)
        climbs[name].append(climb)
        observe(name, climb.goodput)
    removed = {name: len(blocks) for name, blocks in subject.removed.items()}
    return Goodput(plan, removed, climbs)


def _last(climbs: Sequence[Climb]) -> float:
    """The goodput of the last search, 0 if there is none or none was found."""
    return climbs[-1].goodput if climbs else 0.0
