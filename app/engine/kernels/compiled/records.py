"""What compiled functions read: numbers and addresses, as records that numba and numpy share."""

from typing import Any

import numba
import numpy as np
from numba import carray
from numpy.typing import NDArray

from app.engine.kernels.compiled.openmp import compiled, pointer_to

MATRIX = np.dtype(
    [(name, np.int64) for name in ("values", "scales", "bias", "outputs", "inputs")]
)  # with scales, the values are int8
NORM = np.dtype(
    [("weight", np.int64), ("width", np.int64), ("epsilon", np.float32)], align=True
)  # no weight: nothing is normed
# What the blocks of a step have in common: numbers, and addresses of what they read and write.
STEP = np.dtype([
    (name, np.int64)
    for name in (
        "rows", "num_blocks",
        "tables", "num_pages", "table_width",  # int64 [sequences, num_pages, table_width]: units
        "owners", "positions",  # int64, [rows]: the sequence and the place of each token
        "stream", "normed", "projected", "attended", "between", "update",
        "factors",  # of products, in bfloat16
        "room", "room_of_thread",  # of attention, and its float32 numbers for each thread
        "taken",  # int64, [columns]: the pieces of attention that threads have taken
        "interruption", "stops",  # int64: a flag, and what it was at each block, [num_blocks]
    )
])  # fmt: skip
BLOCK = np.dtype(
    [
        *[(name, np.int64) for name in ("source", "target")],  # of the part that runs
        *[
            (name, np.int64)
            for name in ("step", "part", "keys", "values", "num_units", "column", "cos", "sin")
        ],
        *[(name, MATRIX) for name in ("project", "output", "gate_and_up", "down")],
        *[(name, NORM) for name in ("before", "after", "before_feed", "after_feed")],
        *[(name, NORM) for name in ("query_norm", "key_norm")],
        *[(name, np.int64) for name in ("width", "heads", "key_heads", "head_dim")],
        *[(name, np.int64) for name in ("window", "is_rotated")],
        *[(name, np.float32) for name in ("scaling", "input_scale")],
        # The activation is x * sigmoid(slope * (x + cubic * x ** 3)).
        *[(name, np.float32) for name in ("slope", "cubic")],
    ],
    align=True,
)

_to_block = pointer_to(numba.from_dtype(BLOCK))
_to_step = pointer_to(numba.from_dtype(STEP))
_to_int64 = pointer_to(numba.types.int64)


@compiled
def block_at(address: int) -> Any:
    """The ``BLOCK`` at an address."""
    return carray(_to_block(address), 1)[0]


@compiled
def step_at(address: int) -> Any:
    """The ``STEP`` at an address."""
    return carray(_to_step(address), 1)[0]


@compiled
def integers_at(address: int, number: int) -> NDArray[np.int64]:
    """The int64 numbers at an address."""
    numbers: NDArray[np.int64] = carray(_to_int64(address), number)
    return numbers
