"""The time of the parts of one decode step, and the speed-up of removals that follows from it."""

import math
from dataclasses import dataclass

from pruning.plural import counted
from pruning.spec import TargetUnreachable


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of each part of one decode step."""

    embedding_s: float  # all before the first block, with masks and rotations
    block_s: float  # one block
    head_s: float  # all after the last block: norm and logits

    @property
    def is_plausible(self) -> bool:
        """Whether a step through one block takes time, and no part an endless or negative one."""
        parts = (self.embedding_s, self.block_s, self.head_s)
        return all(0 <= part < math.inf for part in parts) and self.step_s(num_blocks=1) > 0

    def step_s(self, num_blocks: int) -> float:
        """Seconds of a step through ``num_blocks`` blocks."""
        return self.embedding_s + num_blocks * self.block_s + self.head_s

    def speedup(self, num_blocks: int, num_remove: int) -> float:
        """Time of a step with all ``num_blocks`` blocks, divided by that without ``num_remove``."""
        return self.step_s(num_blocks) / self.step_s(num_blocks - num_remove)

    def removals_for(self, speedup: float, num_blocks: int, most: int) -> int:
        """The fewest removals that make decoding ``speedup`` times as fast.

        Raises ``TargetUnreachable`` if ``most`` removals do not.
        """
        for num_remove in range(1, most + 1):
            if self.speedup(num_blocks, num_remove) >= speedup:
                return num_remove
        raise TargetUnreachable(
            "target_speedup",
            f"target_speedup={speedup} cannot be reached: removing all "
            f"{counted(most, 'removable block')} of {num_blocks} gives "
            f"{self.speedup(num_blocks, most):.4g}. One decode step takes "
            f"{1e3 * self.embedding_s:.3g} ms for the embeddings, "
            f"{1e3 * self.block_s:.3g} ms per block and {1e3 * self.head_s:.3g} ms "
            "for the head; choose a lower target, or protect fewer blocks",
        )
