"""Speed-ups from times measured in turn, with a confidence interval and a verdict.

A control measures a model against itself in the same way. What it reads is the noise floor. Where
the two sides ran different kernels, a ratio of times compares kernels, not models.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import TypeVar

from app.models.measured_speedups import MeasuredSpeedup
from pruning.student_t import quantile

EQUAL_WITHIN = 0.03  # ratios no further from 1 than this count as no difference
MAX_SPAN = 2.0  # from the lower to the upper end of an interval that is kept: wider says little

_REMEDY = "use more repeats, or a quieter machine"


Kernels = Mapping[str, frozenset[str]]  # by what they compute; several where the choice changed


class Verdict(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Speedup:
    """Ratio of mean times, baseline over variant, with a 95 % interval from two pairs on.

    ``reason`` explains the verdict, or says what is missing for one.
    """

    ratio: float
    low: float | None
    high: float | None
    num_pairs: int
    verdict: Verdict
    reason: str

    def record(self, scenario: str) -> MeasuredSpeedup:
        """As measured now."""
        return MeasuredSpeedup(
            ratio=self.ratio,
            low=self.low,
            high=self.high,
            scenario=scenario,
            measured_at=time.time(),
            num_pairs=self.num_pairs,
        )


def prompt_reading(num_cached_tokens: int) -> str:
    """How all sides read their prompts, of which so many tokens were not read."""
    return "from cached prefixes" if num_cached_tokens else "in full"


_Subject = TypeVar("_Subject")


def alternate(subjects: Sequence[_Subject], repeats: int) -> Iterator[tuple[int, _Subject]]:
    """Each repeat with each subject, in turn: pairs of repeat and subject.

    The order rotates: two subjects go A B, B A. Each comes first equally often, so that drift of
    the machine during a repeat favours none.
    """
    for repeat in range(repeats):
        for subject in turns(subjects, repeat):
            yield repeat, subject


def turns(subjects: Sequence[_Subject], repeat: int) -> Iterator[_Subject]:
    """All subjects, in the order of this repeat."""
    for place in range(len(subjects)):
        yield subjects[(repeat + place) % len(subjects)]


def speedup(
    baseline_s: Sequence[float], variant_s: Sequence[float], objection: str | None = None
) -> Speedup:
    """The speed-up of the variant, from times measured in pairs under the same conditions.

    The interval is that of a ratio of means by Student's t over the residuals ``b - ratio * v``
    (Cochran, Sampling Techniques, 6.5). With as few pairs as here, it has the stated coverage,
    which resampling does not have. With an ``objection``, the verdict is undecided. Raises
    ``ValueError`` unless both sides have equally many times, all above 0.
    """
    if len(baseline_s) != len(variant_s) or min(*baseline_s, *variant_s, 1.0) <= 0:
        raise ValueError("expected equally many positive times for both models")
    ratio = fmean(baseline_s) / fmean(variant_s)
    num_pairs = len(baseline_s)
    if num_pairs < 2:
        reason = objection or "a single repeat gives no interval: use more repeats"
        return Speedup(ratio, None, None, num_pairs, Verdict.UNDECIDED, reason)
    residuals = [b - ratio * v for b, v in zip(baseline_s, variant_s, strict=True)]
    variance = sum(residual * residual for residual in residuals) / (num_pairs - 1)
    error = math.sqrt(variance / num_pairs) / fmean(variant_s)
    margin = quantile(0.975, num_pairs - 1) * error
    low, high = max(ratio - margin, 0.0), ratio + margin
    verdict, reason = _judge(ratio, low, high)
    if objection is not None:
        verdict, reason = Verdict.UNDECIDED, objection
    return Speedup(ratio, low, high, num_pairs, verdict, reason)


def beyond_noise(measured: Speedup, control: Speedup | None) -> Speedup:
    """The speed-up without its verdict, where the control does not support one.

    The noise floor is the interval of the control, extended to 1. A difference must not overlap it.
    No difference can only be claimed where the floor lies within ``EQUAL_WITHIN`` of 1 too.
    """
    if measured.verdict is Verdict.UNDECIDED or measured.low is None or measured.high is None:
        return measured
    if control is None or control.low is None or control.high is None:
        reason = "no control yet: the baseline needs more repeats against itself"
        return replace(measured, verdict=Verdict.UNDECIDED, reason=reason)
    low, high = min(control.low, 1.0), max(control.high, 1.0)
    floor = f"the noise floor {low:.3f} to {high:.3f} of the baseline against itself"
    if measured.verdict is Verdict.NO_DIFFERENCE:
        objection = "" if _is_equal(low, high) else f"{floor} is wider than {EQUAL_WITHIN:.0%}"
    else:
        is_beyond = measured.low > high or measured.high < low
        interval = _interval(measured.low, measured.high)
        objection = "" if is_beyond else f"{interval} overlaps {floor}"
    if not objection:
        return measured
    return replace(measured, verdict=Verdict.UNDECIDED, reason=f"{objection}: {_REMEDY}")


def widened(measured: Speedup, control: Speedup | None) -> Speedup | None:
    """The speed-up as it is kept: with the interval that the noise of the control leaves.

    What the baseline reads against itself may be in the measured ratio as a factor, so both ends
    move outwards by it. None where that leaves too little to keep. Widths alone decide that, so
    what is kept does not depend on which way it went.
    """
    if control is None or control.low is None or control.high is None:
        return None
    if measured.low is None or measured.high is None:
        return None
    floor, ceiling = min(control.low, 1.0), max(control.high, 1.0)
    if measured.high * ceiling > MAX_SPAN * measured.low * floor:
        return None
    return replace(measured, low=measured.low / ceiling, high=measured.high / floor)


def _interval(low: float, high: float) -> str:
    return f"the 95 % interval {low:.3f} to {high:.3f}"


def _is_equal(low: float, high: float) -> bool:
    return low >= 1 - EQUAL_WITHIN and high <= 1 + EQUAL_WITHIN


def _judge(ratio: float, low: float, high: float) -> tuple[Verdict, str]:
    interval = _interval(low, high)
    is_clear = high - low <= abs(ratio - 1)
    if low > 1 and is_clear:
        return Verdict.FASTER, f"{interval} lies above 1"
    if high < 1 and is_clear:
        return Verdict.SLOWER, f"{interval} lies below 1"
    if _is_equal(low, high):
        return Verdict.NO_DIFFERENCE, f"{interval} lies within {EQUAL_WITHIN:.0%} of 1"
    what = "contains 1" if low <= 1 <= high else f"is wider than the effect of {ratio - 1:+.1%}"
    return Verdict.UNDECIDED, f"{interval} {what}: {_REMEDY}"


def all_kernels(each: Iterable[Mapping[str, str]]) -> Kernels:
    """The kernels of several runs of one side."""
    chosen: defaultdict[str, set[str]] = defaultdict(set)
    for kernels in each:
        for what, kernel in kernels.items():
            chosen[what].add(kernel)
    return {what: frozenset(chosen[what]) for what in sorted(chosen)}


def different_kernels(baseline: Kernels, variant: Kernels) -> str | None:
    """What the sides compute by different kernels, or one of them by several; None if nothing.

    What only one side computes is no difference: int8 weights have kernels of their own.
    """
    differing = [
        f"{what} ({_names(baseline[what])} against {_names(variant[what])})"
        for what in baseline.keys() & variant.keys()
        if len(baseline[what] | variant[what]) > 1
    ]
    return f"different kernels: {'; '.join(sorted(differing))}" if differing else None


def kernel_names(kernels: Kernels) -> dict[str, str]:
    """For a report."""
    return {what: _names(of_what) for what, of_what in kernels.items()}


def _names(kernels: frozenset[str]) -> str:
    return " and ".join(sorted(kernels))
