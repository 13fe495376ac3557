"""Throughput and latencies of completed requests: TTFT, TPOT and inter-token latency."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from app.compare.speedup import alternate
from benchmarks.workload import SampleRequest

_PERCENTILES = (50, 95, 99)
_NUM_WARM_UP = 8  # requests


@dataclass(frozen=True)
class RequestTiming:
    """When one request was sent and its output received, in seconds of ``time.perf_counter``."""

    sent_s: float
    received_s: tuple[float, ...]  # of each chunk, which has one token or several
    num_tokens: int  # generated

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.received_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first. None for fewer than two tokens."""
        if self.num_tokens < 2:
            return None
        return (self.received_s[-1] - self.received_s[0]) / (self.num_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between consecutive chunks."""
        return [after - before for before, after in pairwise(self.received_s)]


@dataclass(frozen=True)
class Pass:
    """One pass of one side over a workload."""

    seconds: float
    timings: tuple[RequestTiming, ...]

    @property
    def num_tokens(self) -> int:
        return sum(timing.num_tokens for timing in self.timings)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


SideRunner = Callable[[Sequence[SampleRequest]], Pass]


def run_in_turn(
    sides: Mapping[str, SideRunner], requests: Sequence[SampleRequest], repeats: int
) -> dict[str, list[Pass]]:
    """Run all sides in turn, ``repeats`` times, after a short warm-up of each."""
    few = requests[:_NUM_WARM_UP]
    short = [replace(request, num_new_tokens=min(request.num_new_tokens, 2)) for request in few]
    for side in sides.values():
        side(short)
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    for _, name in alternate(list(sides), repeats):
        passes[name].append(sides[name](requests))
    return passes


def ratio(passes: Mapping[str, Sequence[Pass]], ours: str, theirs: str) -> float | None:
    """Ratio of tokens per second. None unless both sides were run.

    It is the median over pairs of passes, since a slow phase of the machine affects both of a pair.
    """
    if ours not in passes or theirs not in passes:
        return None
    pairs = zip(passes[ours], passes[theirs], strict=True)
    return median(our.tokens_per_s / their.tokens_per_s for our, their in pairs)


def rate(passes: Sequence[Pass]) -> float:
    """Median tokens per second."""
    return median(one.tokens_per_s for one in passes)


def median_tpot_s(passes: Sequence[Pass]) -> float:
    """Median over all requests with more than one token."""
    tpots_s = (timing.tpot_s for one in passes for timing in one.timings)
    return median(tpot_s for tpot_s in tpots_s if tpot_s is not None)


def throughput(passes: Sequence[Pass]) -> dict[str, object]:
    """Report of a side that does not stream: no latencies."""
    return {
        "tokens_per_s": round(rate(passes), 2),
        "requests": len(passes[0].timings),
        "tokens": passes[0].num_tokens,
        "seconds": [round(one.seconds, 6) for one in passes],
    }


def performance(passes: Sequence[Pass]) -> dict[str, object]:
    """Report of throughput, and of latencies in seconds over the requests of all passes."""
    timings = [timing for one in passes for timing in one.timings]
    tpots_s = [timing.tpot_s for timing in timings]
    return {
        **throughput(passes),
        "ttft_s": distribution(timing.ttft_s for timing in timings),
        "tpot_s": distribution(tpot_s for tpot_s in tpots_s if tpot_s is not None),
        "itl_s": distribution(gap_s for timing in timings for gap_s in timing.gaps_s),
    }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and linearly interpolated percentiles. None without values."""
    known = list(values)
    if not known:
        return None
    percentiles = np.percentile(known, _PERCENTILES)
    named = {f"p{q}": float(value) for q, value in zip(_PERCENTILES, percentiles, strict=True)}
    return {name: round(value, 6) for name, value in {"mean": fmean(known), **named}.items()}
