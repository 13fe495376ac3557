"""The parts of a block around its products, which torch computes.

Products read and write numbers of the type of the model, ``like`` the cache. The stream of hidden
states stays in float32 from the first to the last part of a block. Threads share the rows.
"""

from typing import Any

from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    floats_at,
    own_floats,
)
from app.engine.kernels.compiled.attention import attend
from app.engine.kernels.compiled.openmp import Floats, compiled, inlined, share
from app.engine.kernels.compiled.rows import gate, norm_rows


@inlined
def before_project(block: Any, step: Any, like: Any) -> None:
    """Hidden states to the stream, and normed."""
    hidden = array_like(like, block.source, step.rows, block.width)
    stream = floats_at(step.stream, step.rows, block.width)
    first, last = share(step.rows)
    for row in range(first, last):
        for at in range(block.width):
            stream[row, at] = as_float(hidden[row, at]) * block.input_scale
    normed = array_like(like, block.target, step.rows, block.width)
    norm_rows(block.before, stream, normed, first, last)


@inlined
def before_output(block: Any, step: Any, like: Any) -> None:
    """Queries, keys and values to what attention gives."""
    projected = array_like(like, block.source, step.rows, block.project.outputs)
    heads = floats_at(step.projected, step.rows, block.project.outputs)
    first, last = share(step.rows)
    for row in range(first, last):
        for at in range(block.project.outputs):
            heads[row, at] = as_float(projected[row, at])
    attended = floats_at(step.attended, step.rows, block.output.inputs)
    attend(block, step, heads, attended, like)
    out = array_like(like, block.target, step.rows, block.output.inputs)
    for row in range(first, last):
        for at in range(block.output.inputs):
            out[row, at] = as_number_of(out, attended[row, at])


@inlined
def before_gate_and_up(block: Any, step: Any, like: Any) -> None:
    """What attention adds to the stream, and the stream normed."""
    stream = _added(block, step, block.after, like)
    normed = array_like(like, block.target, step.rows, block.width)
    first, last = share(step.rows)
    norm_rows(block.before_feed, stream, normed, first, last)


@inlined
def before_down(block: Any, step: Any, like: Any) -> None:
    """What the gates let pass."""
    width = block.down.inputs
    gates = array_like(like, block.source, step.rows, 2 * width)
    out = array_like(like, block.target, step.rows, width)
    first, last = share(step.rows)
    for row in range(first, last):
        gate(block, gates, row, 0, width, out)


@inlined
def before_next(block: Any, step: Any, like: Any) -> None:
    """What the feed-forward part adds to the stream, as hidden states."""
    stream = _added(block, step, block.after_feed, like)
    hidden = array_like(like, block.target, step.rows, block.width)
    first, last = share(step.rows)
    for row in range(first, last):
        for at in range(block.width):
            hidden[row, at] = as_number_of(hidden, stream[row, at])


@compiled
def _added(block: Any, step: Any, norm: Any, like: Any) -> Floats:
    """The stream with an update, normed, in this thread's share of the rows."""
    update = array_like(like, block.source, step.rows, block.width)
    stream = floats_at(step.stream, step.rows, block.width)
    rest = own_floats(step.normed, 1, block.width)
    first, last = share(step.rows)
    for row in range(first, last):
        for at in range(block.width):
            rest[0, at] = as_float(update[row, at])
        if norm.weight:
            norm_rows(norm, rest, rest, 0, 1)
        for at in range(block.width):
            stream[row, at] += rest[0, at]
    return stream
