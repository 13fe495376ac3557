"""What the search needs of a scorer that can score candidates on some of the windows."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pruning.removal import Losses
from pruning.sleb import Blocks, RoundScorer


class WindowScorer(RoundScorer, Protocol):
    """Scores candidates on all windows or on some of them."""

    @property
    def num_windows(self) -> int: ...

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` on these windows only.

        ``windows`` must begin and end at 0, ``num_windows``, a boundary of the scorer, or an end
        of its ``parts``.
        """

    def parts(self, windows: range) -> Sequence[range]:
        """Those that can be scored one after the other without more to compute."""
