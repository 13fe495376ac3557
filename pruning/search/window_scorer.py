"""What the search needs of a scorer that can score candidates on some of the windows."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from pruning.removal import Losses
from pruning.sleb import Blocks, RoundScorer

NO_BLOCK = -1  # as a candidate: the kept blocks themselves, by their loss


class WindowScorer(RoundScorer, Protocol):
    """Scores candidates on all windows or on some of them."""

    @property
    def num_windows(self) -> int: ...

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` on these windows only.

        ``windows`` must begin and end at 0, ``num_windows`` or a boundary of the scorer.
        """


class GrowingScorer(WindowScorer, Protocol):
    """Tells of candidates while they are scored."""

    def growing(
        self, keep: Blocks, candidates: Blocks, windows: range, known: Mapping[int, Losses]
    ) -> Iterator[tuple[int, Losses]]:
        """As ``score``, but a candidate comes whenever it is scored on more of the windows.

        Losses are those of the first windows of the range. Those in ``known`` are not computed
        again, but for windows that are only scored together with others.
        """
