"""Decoder blocks for the tokens of one step, a row each, as one function for all threads.

Between products everything is float32; hidden states, weights and the cache have the type of the
model. In whole blocks, threads share the outputs of a product. Where products are left to torch,
the parts around them are functions of their own, which share the rows, and the stream of hidden
states stays in float32 from the first to the last part of a block.
"""

from typing import Any

from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    floats_at,
    halves_at,
    own_floats,
)
from app.engine.kernels.compiled.attention import attend, turn_and_store
from app.engine.kernels.compiled.openmp import Floats, barrier, compiled, get_thread, inlined, share
from app.engine.kernels.compiled.records import BLOCK, block_at, integers_at, step_at
from app.engine.kernels.compiled.rows import gate, multiply, norm_rows

_BLOCK_BYTES = BLOCK.itemsize

# What runs: all blocks as a whole, or a part of one, by what is behind it.
WHOLE, PROJECT, ATTENTION, OUTPUT, GATE_AND_UP, DOWN, NEXT = range(7)


def float32_block(address: int) -> None:
    """Run what the ``BLOCK`` at this address says, on hidden states and a cache of float32."""
    _run(address, floats_at(address, 1, 1))


def bfloat16_block(address: int) -> None:
    """The same on bfloat16."""
    _run(address, halves_at(address, 1, 1))


@inlined
def _run(address: int, like: Any) -> None:
    block = block_at(address)
    step = step_at(block.step)
    if block.part == WHOLE:
        _whole(address, block, step, like)
    elif block.part == PROJECT:
        _before_project(block, step, like)
    elif block.part == ATTENTION:
        _before_attention(block, step, like)
    elif block.part == OUTPUT:
        _before_output(block, step, like)
    elif block.part == GATE_AND_UP:
        _before_gate_and_up(block, step, like)
    elif block.part == DOWN:
        _before_down(block, step, like)
    else:
        _before_next(block, step, like)


@inlined
def _whole(address: int, block: Any, step: Any, like: Any) -> None:
    """From hidden states to those behind the last block, in their place.

    An interruption ends it between two blocks.
    """
    hidden = array_like(like, block.source, step.rows, block.width)
    stream = floats_at(step.stream, step.rows, block.width)
    first, last = share(block.width)
    _widen(hidden, first, last, stream)
    stops = integers_at(step.stops, step.num_blocks)
    for position in range(step.num_blocks):
        each = block_at(address + position * _BLOCK_BYTES)
        if get_thread() == 0:  # all threads must see the same, which barriers in the block ensure
            stops[position] = integers_at(step.interruption, 1)[0]
        if not position or each.input_scale != 1:
            _scale(stream, each.input_scale, first, last)
            barrier()
        _attention(each, step, stream, like)
        _feed_forward(each, step, stream, like)
        if stops[position]:
            break
    for row in range(step.rows):
        for at in range(first, last):
            hidden[row, at] = as_number_of(hidden, stream[row, at])


@compiled
def _widen(hidden: Any, first: int, last: int, stream: Floats) -> None:
    for row in range(len(stream)):
        for at in range(first, last):
            stream[row, at] = as_float(hidden[row, at])


@compiled
def _scale(stream: Floats, factor: Any, first: int, last: int) -> None:
    for row in range(len(stream)):
        for at in range(first, last):
            stream[row, at] *= factor


@inlined
def _attention(block: Any, step: Any, stream: Floats, like: Any) -> None:
    normed = own_floats(step.normed, step.rows, block.width)
    norm_rows(block.before, stream, normed, 0, step.rows)
    heads = floats_at(step.projected, step.rows, block.project.outputs)
    first, last = share(block.project.outputs)
    multiply(step, block.project, normed, first, last, heads, like)
    barrier()
    attended = floats_at(step.attended, step.rows, block.output.inputs)
    attend(block, step, heads, attended, like)
    _write_product(block, step, block.output, attended, block.after, stream, like)


@inlined
def _feed_forward(block: Any, step: Any, stream: Floats, like: Any) -> None:
    normed = own_floats(step.normed, step.rows, block.width)
    norm_rows(block.before_feed, stream, normed, 0, step.rows)
    width = block.down.inputs
    gates = floats_at(step.projected, step.rows, 2 * width)
    between = floats_at(step.between, step.rows, width)
    first, last = share(width)
    for start in (first, width + first):
        end = start + last - first
        multiply(step, block.gate_and_up, normed, start, end, gates, like)
    for row in range(step.rows):
        gate(block, gates, row, first, last, between)
    barrier()
    _write_product(block, step, block.down, between, block.after_feed, stream, like)


@compiled
def _write_product(
    block: Any, step: Any, matrix: Any, inputs: Floats, norm: Any, stream: Floats, like: Any
) -> None:
    """Add a product, normed, to the stream."""
    update = floats_at(step.update, step.rows, block.width)
    first, last = share(block.width)
    multiply(step, matrix, inputs, first, last, update, like)
    added = update
    if norm.weight:
        barrier()
        added = own_floats(step.normed, step.rows, block.width)
        norm_rows(norm, update, added, 0, step.rows)
        barrier()
    for row in range(step.rows):
        for at in range(first, last):
            stream[row, at] += added[row, at]
    barrier()


@inlined
def _before_project(block: Any, step: Any, like: Any) -> None:
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
def _before_attention(block: Any, step: Any, like: Any) -> None:
    """Queries, keys and values to rotated queries, with keys and values in their pages."""
    heads = _widened_heads(block, step, like)
    turn_and_store(block, step, heads, like)
    _write_rows(heads, array_like(like, block.target, step.rows, block.heads * block.head_dim))


@inlined
def _before_output(block: Any, step: Any, like: Any) -> None:
    """Queries, keys and values to what attention gives."""
    heads = _widened_heads(block, step, like)
    attended = floats_at(step.attended, step.rows, block.output.inputs)
    attend(block, step, heads, attended, like)
    _write_rows(attended, array_like(like, block.target, step.rows, block.output.inputs))


@compiled
def _widened_heads(block: Any, step: Any, like: Any) -> Floats:
    """Queries, keys and values of this thread's share of the rows."""
    projected = array_like(like, block.source, step.rows, block.project.outputs)
    heads = floats_at(step.projected, step.rows, block.project.outputs)
    first, last = share(step.rows)
    for row in range(first, last):
        for at in range(block.project.outputs):
            heads[row, at] = as_float(projected[row, at])
    return heads


@compiled
def _write_rows(numbers: Floats, out: Any) -> None:
    """The first columns of this thread's share of the rows."""
    first, last = share(len(out))
    for row in range(first, last):
        for at in range(out.shape[1]):
            out[row, at] = as_number_of(out, numbers[row, at])


@inlined
def _before_gate_and_up(block: Any, step: Any, like: Any) -> None:
    """What attention adds to the stream, and the stream normed."""
    stream = _added(block, step, block.after, like)
    normed = array_like(like, block.target, step.rows, block.width)
    first, last = share(step.rows)
    norm_rows(block.before_feed, stream, normed, first, last)


@inlined
def _before_down(block: Any, step: Any, like: Any) -> None:
    """What the gates let pass."""
    width = block.down.inputs
    gates = array_like(like, block.source, step.rows, 2 * width)
    out = array_like(like, block.target, step.rows, width)
    first, last = share(step.rows)
    for row in range(first, last):
        gate(block, gates, row, 0, width, out)


@inlined
def _before_next(block: Any, step: Any, like: Any) -> None:
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
