"""The bytes of blocks, and how many must go for a target."""

from collections.abc import Sequence

from pruning.plural import counted
from pruning.spec import TargetUnreachable


def removals_for_bytes(target: int, total: int, free: Sequence[int], most: int) -> int:
    """The fewest removals that leave at most ``target`` of ``total`` bytes, whichever blocks go.

    ``free`` are the bytes of each block that may go. Raises ``TargetUnreachable`` if ``most``
    removals do not suffice, or none is needed.
    """
    if total <= target:
        raise TargetUnreachable(
            "target_bytes",
            f"target_bytes={target} needs no removal: the weights of the dense model have "
            f"{total} bytes in the published dtype; choose a lower target",
        )
    left = total
    for num_removed, smallest in enumerate(sorted(free)[:most], start=1):
        left -= smallest
        if left <= target:
            return num_removed
    raise TargetUnreachable(
        "target_bytes",
        f"target_bytes={target} cannot be reached: with {counted(most, 'block')} "
        f"removed, the weights may still have {left} bytes; choose a higher target, "
        "protect fewer blocks, or publish a smaller dtype",
    )
