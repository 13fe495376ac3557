"""What an interval says of a limit."""

from enum import Enum
from typing import Self

from pruning.evaluation.quality import Interval


class Verdict(Enum):
    """Whether a limit is kept, as far as an interval shows."""

    KEPT = "kept"  # the whole interval is within the limit
    EXCEEDED = "exceeded"  # the whole interval is beyond it
    UNDECIDED = "undecided"

    @classmethod
    def of(cls, interval: Interval, limit: float) -> Self:
        """Of a value that is to be at most ``limit``: by the value alone where the interval is
        unknown. NaN exceeds any limit.
        """
        low = interval.value if interval.low is None else interval.low
        high = interval.value if interval.high is None else interval.high
        if high <= limit:
            return cls.KEPT
        return cls.UNDECIDED if low <= limit else cls.EXCEEDED

    @classmethod
    def at_least(cls, interval: Interval, limit: float) -> Self:
        """The same of a value that is to be at least ``limit``."""
        low = interval.value if interval.low is None else interval.low
        high = interval.value if interval.high is None else interval.high
        if low >= limit:
            return cls.KEPT
        return cls.UNDECIDED if high >= limit else cls.EXCEEDED
