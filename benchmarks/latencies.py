"""How fast requests were answered: tokens per second, and how long each of them waited."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

import numpy as np

_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Answered:
    """One request; moments in seconds on a clock of its own."""

    sent_s: float
    came_s: tuple[float, ...]  # pieces of the answer, each with a token or several
    num_tokens: int  # generated

    @property
    def ttft_s(self) -> float:
        """Until the first token."""
        return self.came_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for fewer than two tokens."""
        if self.num_tokens < 2:
            return None
        return (self.came_s[-1] - self.came_s[0]) / (self.num_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between neighbouring pieces."""
        return [after - before for before, after in pairwise(self.came_s)]


@dataclass(frozen=True)
class Pass:
    """One pass of one side over a workload."""

    seconds: float
    answers: tuple[Answered, ...]

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


def rate(passes: Sequence[Pass]) -> float:
    """Median tokens per second."""
    return median(one.tokens_per_s for one in passes)


def median_tpot_s(passes: Sequence[Pass]) -> float:
    """Of all requests with more than one token."""
    tpots_s = (answer.tpot_s for one in passes for answer in one.answers)
    return median(tpot_s for tpot_s in tpots_s if tpot_s is not None)


def throughput(passes: Sequence[Pass]) -> dict[str, object]:
    """Of a side that tells nothing before its answers are complete."""
    return {
        "tokens_per_s": round(rate(passes), 2),
        "requests": len(passes[0].answers),
        "tokens": passes[0].num_tokens,
        "seconds": [round(one.seconds, 6) for one in passes],
    }


def performance(passes: Sequence[Pass]) -> dict[str, object]:
    """Throughput, and latencies in seconds over the requests of all passes."""
    answers = [answer for one in passes for answer in one.answers]
    tpots_s = [answer.tpot_s for answer in answers]
    return {
        **throughput(passes),
        "ttft_s": distribution(answer.ttft_s for answer in answers),
        "tpot_s": distribution(its for its in tpots_s if its is not None),
        "itl_s": distribution(gap_s for answer in answers for gap_s in answer.gaps_s),
    }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles, those between two values by linear interpolation; None for nothing."""
    known = list(values)
    if not known:
        return None
    percentiles = np.percentile(known, _PERCENTILES)
    named = {f"p{share}": float(its) for share, its in zip(_PERCENTILES, percentiles, strict=True)}
    return {name: round(its, 6) for name, its in {"mean": fmean(known), **named}.items()}
