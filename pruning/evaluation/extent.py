"""How long an evaluation went on, and why no longer, as the manifest of a checkpoint records it."""

from dataclasses import dataclass
from enum import StrEnum


class Ended(StrEnum):
    """Why no more windows were measured."""

    MARGIN = "margin"  # all intervals were narrow enough
    TIME = "time"
    TEXT = "text"  # there are no more windows
    NUMBER = "number"  # it was asked for


@dataclass(frozen=True)
class Extent:
    """What ended an evaluation, and what it was asked for."""

    ended: Ended
    margin: float  # that was wanted, relative
    max_seconds: float

    def __str__(self) -> str:
        wanted = f"±{100 * self.margin:.3g} %"
        return {
            Ended.MARGIN: f"windows were added until every ratio was known to {wanted}",
            Ended.TIME: f"{self.max_seconds:g} s were spent before every ratio was known to "
            f"{wanted}",
            Ended.TEXT: f"the text has no more windows, and not every ratio is known to {wanted}",
            Ended.NUMBER: "the number of windows was asked for",
        }[self.ended]
