"""A promise about latency: upper limits for the times of a request, as vLLM's ``--goodput`` has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from app.engine.scheduling.sequence import Timings

_UNITS: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "": 1e-3}
_LIMIT = re.compile(r"(ttft|tpot|e2el?)[=:]([0-9]+(?:\.[0-9]+)?)(ms|s|)")


class InvalidPromise(ValueError):
    """The text of a promise cannot be read."""


@dataclass(frozen=True)
class Promise:
    """None: this time is not limited. At least one is."""

    ttft_s: float | None = None  # until the first token
    tpot_s: float | None = None  # of each further token, on average
    e2e_s: float | None = None  # until the last one

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``ttft=500ms,tpot=50ms``, also with colons; a number without unit is in ms.

        As in vLLM, ``e2el`` is a name of ``e2e``. Raises ``InvalidPromise``.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            match = _LIMIT.fullmatch(part.strip())
            if match is None or not float(match[2]):
                raise InvalidPromise(
                    f"{part.strip()!r}: expected ttft, tpot or e2e with a time, as "
                    "ttft=500ms,tpot=50ms"
                )
            limits[f"{match[1].removesuffix('l')}_s"] = float(match[2]) * _UNITS[match[3]]
        return cls(**limits)

    def __str__(self) -> str:
        limits = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        return ", ".join(
            f"{name} of at most {1e3 * limit:g} ms"
            for name, limit in limits.items()
            if limit is not None
        )

    def is_kept(self, timings: Timings) -> bool:
        """Whether a request kept it. One without a second token has no time per token."""
        return self.strain(timings) <= 1

    def strain(self, timings: Timings) -> float:
        """The largest share of its limit that a time of the request takes; 0 if it has none."""
        pairs = (
            (self.ttft_s, timings.ttft_s),
            (self.tpot_s, timings.tpot_s),
            (self.e2e_s, timings.e2e_s),
        )
        shares = (
            measured / limit
            for limit, measured in pairs
            if limit is not None and measured is not None
        )
        return max(shares, default=0.0)
