"""Searches whose losses are drawn from a table, for properties that hold for any losses."""

import random
from collections.abc import Iterator

from hypothesis import strategies as st

from pruning.removal import Losses
from pruning.sleb import Blocks


class TableScorer:
    """Losses drawn once per set of kept blocks; a coarse grid makes ties common."""

    def __init__(self, seed: int, grid: int = 4) -> None:
        self._seed = seed
        self._grid = grid
        self.asked: list[Blocks] = []

    def loss(self, keep: Blocks) -> float:
        self.asked.append(keep)
        return random.Random(f"{self._seed}{keep}").randrange(self._grid) / self._grid

    def losses(self, keep: Blocks) -> Losses:
        return [self.loss(keep)]

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        for block in random.Random(self._seed).sample(candidates, len(candidates)):
            yield block, self.losses(tuple(alive for alive in keep if alive != block))


@st.composite
def searches(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    num_blocks = draw(st.integers(1, 12))
    first = draw(st.integers(0, num_blocks))
    last = draw(st.integers(0, num_blocks - first))
    num_remove = draw(st.integers(0, max(0, num_blocks - max(1, first + last))))
    return draw(st.integers(0, 999)), num_blocks, num_remove, first, last
