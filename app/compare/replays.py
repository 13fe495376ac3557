"""A pair of replays of a live output, and what runs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.engine.scheduling.sequence import FinishReason
from app.generation.completed import CompletedOutput
from app.generation.output import Output
from app.generation.request import Served
from app.models.entry import ModelEntry

WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


class Dropped(Exception):
    """The pair is dropped. ``args[0]`` is the reason for the metrics."""


@dataclass(eq=False)
class Pair:
    """The two replays of a live output."""

    live: CompletedOutput
    counterpart: Served | None = None  # None until it is found, and for a control
    cancels: list[Callable[[], object]] = field(default_factory=list)  # of replays that have begun
    drop_reason: str | None = None

    def is_of(self, is_meant: Callable[[Served], bool]) -> bool:
        own, other = self.live.served, self.counterpart
        return is_meant(own) or (other is not None and is_meant(other))

    def drop(self, reason: str) -> None:
        """End both replays."""
        self.drop_reason = self.drop_reason or reason
        for cancel in self.cancels:
            cancel()


class Replays(Protocol):
    """Runs replays with one kind of engine, while that has nothing else to do."""

    @property
    def is_busy(self) -> bool:
        """Whether it computes anything, live requests and replays included."""

    async def find(self, entry: ModelEntry) -> Served | None:
        """The counterpart, if it is loaded already. Raises what loading a model may."""

    async def outputs(self, pair: Pair, sides: Sequence[Served]) -> list[Output]:
        """The output of each side: one after the other, each prompt read in full.

        Timings say whether nothing else ran there. Raises ``Dropped``.
        """
