"""Attention of tokens, a row each, to the pages of their sequences up to their own positions.

Threads share the rows, whose queries and keys are rotated. Then each takes a piece of the attention
after the other: successive rows of a sequence with the heads that share keys. For a piece, keys and
values become float32 once, a tile of tokens at a time, and softmax is carried on from tile to tile.
"""

from typing import Any

import numpy as np

from app.engine.cache.pages import PAGE_TOKENS
from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_number_of,
    exp,
    floats_at,
    itemsize,
)
from app.engine.kernels.compiled.numbers import num_lanes
from app.engine.kernels.compiled.openmp import (
    Floats,
    barrier,
    compiled,
    get_num_threads,
    get_thread,
    inlined,
    share,
    take,
)
from app.engine.kernels.compiled.outer import (
    add_product,
    num_columns,
    of_word,
    operands_at,
    write_columns,
    write_rows,
)
from app.engine.kernels.compiled.records import integers_at
from app.engine.kernels.compiled.rows import norm_rows
from app.engine.kernels.compiled.weights import weigh

_TILE = 64  # tokens
_QUERIES = 48  # of a piece, or one for each head that shares keys
_TAKING = np.float32(2)  # the time of making a tile float32, as a number of queries


def room_of_thread(num_sharing: int, head_dim: int) -> int:
    """The float32 numbers that a thread needs for heads of which so many share keys."""
    padded = -(-head_dim // num_lanes()) * num_lanes()
    queries = max(_QUERIES, num_sharing)
    of_query = head_dim + _TILE + padded + 1 + num_lanes()
    return _TILE * (head_dim + padded) + queries * of_query + num_lanes()


@inlined
def attend(block: Any, step: Any, heads: Floats, attended: Floats, like: Any) -> None:
    """Write keys and values into their pages, and what the queries get into ``attended``.

    ``heads [rows, outputs]`` are queries, keys and values, side by side, of which a thread has
    written its share of the rows. Pages have numbers ``like`` these. Ends with a barrier.
    """
    turn_and_store(block, step, heads, like)
    barrier()
    num_sharing = block.heads // block.key_heads
    together = num_sharing if _work(step, block, num_sharing) <= _work(step, block, 1) else 1
    next_piece, piece, first = take(step.taken + 8 * block.column), 0, 0
    while first < step.rows:
        last = _end_of_group(step, first, together)
        for head in range(0, block.heads, together):
            if piece == next_piece:
                _attend_piece(block, step, first, last, head, together, like)
                next_piece = take(step.taken + 8 * block.column)
            piece += 1
        first = last
    barrier()


@inlined
def turn_and_store(block: Any, step: Any, heads: Floats, like: Any) -> None:
    """Rotate the queries and keys of this thread's share of the rows, whose ``heads`` it has
    written, and write keys and values into their pages."""
    positions, width = integers_at(step.positions, step.rows), block.head_dim
    first, last = share(step.rows)
    for row in range(first, last):
        start = step.projected + 4 * row * heads.shape[1]
        turn(block, row, start)
        page, offset = positions[row] // PAGE_TOKENS, positions[row] % PAGE_TOKENS
        at = _unit(block, step, row, page) * PAGE_TOKENS + offset
        _store(block, start + 4 * block.heads * width, like, block.keys, at)
        _store(block, start + 4 * (block.heads + block.key_heads) * width, like, block.values, at)


@compiled
def _work(step: Any, block: Any, together: int) -> Any:
    """What the busiest thread does if so many heads are in one piece, in queries of a tile."""
    first = num_pieces = 0
    while first < step.rows:
        first = _end_of_group(step, first, together)
        num_pieces += block.heads // together
    queries = np.float32(step.rows * block.heads) / np.float32(num_pieces)
    return -(-num_pieces // get_num_threads()) * (_TAKING + queries)


@compiled
def _end_of_group(step: Any, first: int, together: int) -> Any:
    """Where the rows of a sequence end that are in one piece with the first one."""
    owners = integers_at(step.owners, step.rows)
    most = min(step.rows, first + max(1, _QUERIES // together))
    last = first + 1
    while last < most and owners[last] == owners[first]:
        last += 1
    return last


@compiled
def _unit(block: Any, step: Any, row: int, page: int) -> Any:
    """The unit that has a page of the sequence of a row."""
    owner = integers_at(step.owners, step.rows)[row]
    at = (owner * step.num_pages + page) * step.table_width + block.column
    return integers_at(step.tables, at + 1)[at]


@compiled
def turn(block: Any, row: int, start: int) -> None:
    """Norm the queries and keys of a row, which start at this address, and rotate them."""
    width = block.head_dim
    num_heads = block.heads + block.key_heads
    _norm_parts(block.query_norm, start, block.heads * width)
    _norm_parts(block.key_norm, start + 4 * block.heads * width, block.key_heads * width)
    if not block.is_rotated:
        return
    cos, sin = (
        floats_at(block.cos + 4 * row * width, 2, width // 2),
        floats_at(block.sin + 4 * row * width, 2, width // 2),
    )
    halves = floats_at(start, 2 * num_heads, width // 2)
    for head in range(num_heads):
        low, high = 2 * head, 2 * head + 1
        for at in range(width // 2):
            first, second = halves[low, at], halves[high, at]
            halves[low, at] = first * cos[0, at] + second * sin[0, at]
            halves[high, at] = second * cos[1, at] + first * sin[1, at]


@compiled
def _norm_parts(norm: Any, address: int, size: int) -> None:
    if norm.weight:
        parts = floats_at(address, size // norm.width, norm.width)
        norm_rows(norm, parts, parts, 0, len(parts))


@compiled
def _store(block: Any, start: int, like: Any, address: int, at: int) -> None:
    """Write the keys or values of a row, which start at an address, into the pool ``[key_heads,
    units, tokens, head_dim]``; ``at`` is the token of the first head."""
    width = block.head_dim
    new = floats_at(start, block.key_heads, width)
    for head in range(block.key_heads):
        place = (head * block.num_units * PAGE_TOKENS + at) * width * itemsize(like)
        cached = array_like(like, address + place, 1, width)
        for column in range(width):
            cached[0, column] = as_number_of(cached, new[head, column])


@compiled
def _attend_piece(
    block: Any, step: Any, first: int, last: int, head: int, together: int, like: Any
) -> None:
    """Attention of some heads of some rows of a sequence to the tokens that each row sees."""
    width, num_rows = block.head_dim, (last - first) * together
    padded, number = -(-width // num_columns()) * num_columns(), of_word(like)
    keys = step.room + 4 * get_thread() * step.room_of_thread
    values = keys + 4 * _TILE * width
    queries = values + 4 * _TILE * padded
    scores = queries + 4 * num_rows * width
    out = scores + 4 * num_rows * _TILE
    tops = floats_at(out + 4 * num_rows * padded, 1, num_rows)  # highest scores so far
    totals = out + 4 * num_rows * (padded + 1)  # partial sums of weights, last those of a tile
    _begin(block, step, first, last, head, together, queries, like)
    sums = floats_at(out, num_rows, padded)
    sums[:] = np.float32(0)
    tops[:] = np.float32(-np.inf)
    floats_at(totals, num_rows, num_columns())[:] = np.float32(0)
    positions = integers_at(step.positions, step.rows)
    nearest = positions[last - 1] + 1
    farthest = max(0, positions[first] + 1 - block.window) if block.window else 0
    key_head, words = head // (block.heads // block.key_heads), width // number
    for start in range(farthest // _TILE * _TILE, nearest, _TILE):
        end = min(start + _TILE, nearest)
        _take_tile(block, step, first, key_head, start, end, keys, values, padded, like)
        floats_at(scores, num_rows, _TILE)[:] = np.float32(0)
        add_product(
            like, queries, 4 * words, keys, 4 * _TILE, scores, 4 * _TILE, num_rows, words, _TILE
        )
        _weigh_rows(block, step, first, together, start, scores, tops, totals, sums, like)
        depth = -(-(end - start) // number)
        add_product(
            like, scores, 4 * _TILE, values, 4 * padded, out, 4 * padded, num_rows, depth, padded
        )
    _end(block, step, first, last, head, together, sums, totals)


@compiled
def _begin(
    block: Any, step: Any, first: int, last: int, head: int, together: int, queries: int, like: Any
) -> None:
    """Copy the queries of a piece, the heads of one row after the other."""
    width = block.head_dim
    copies = operands_at(like, queries, last - first, together * width)
    for row in range(first, last):
        start = step.projected + 4 * (row * block.project.outputs + head * width)
        own = floats_at(start, 1, together * width)
        for at in range(together * width):
            copies[row - first, at] = as_number_of(copies, own[0, at])


@compiled
def _end(
    block: Any, step: Any, first: int, last: int, head: int, together: int, sums: Floats,
    totals: int,
) -> None:  # fmt: skip
    """Write what the queries get."""
    width = block.head_dim
    parts = floats_at(totals, len(sums), num_columns())
    for row in range(first, last):
        start = step.attended + 4 * (row * block.output.inputs + head * width)
        out = floats_at(start, together, width)
        for each in range(together):
            query = (row - first) * together + each
            total = np.float32(0)
            for lane in range(num_columns()):
                total += parts[query, lane]
            factor = np.float32(1) / total
            for at in range(width):
                out[each, at] = sums[query, at] * factor


@compiled
def _take_tile(
    block: Any, step: Any, row: int, key_head: int, start: int, end: int, keys: int, values: int,
    padded: int, like: Any,
) -> None:  # fmt: skip
    """Write keys and values of some tokens as operands."""
    width = block.head_dim
    for token in range(start, end, num_columns()):
        unit = _unit(block, step, row, token // PAGE_TOKENS)
        place = (key_head * block.num_units + unit) * PAGE_TOKENS + token % PAGE_TOKENS
        source = place * width * itemsize(like)
        write_columns(like, block.keys + source, width, keys + 4 * (token - start), _TILE)
        offset = (token - start) // of_word(like) * 4 * padded
        write_rows(like, block.values + source, width, values + offset, padded)


@compiled
def _weigh_rows(
    block: Any, step: Any, first: int, together: int, start: int, scores: int, tops: Floats,
    totals: int, sums: Floats, like: Any,
) -> None:  # fmt: skip
    """Make weights of the scores of a tile, and scale the sums to them."""
    positions = integers_at(step.positions, step.rows)
    scaling, window, num_rows = block.scaling, block.window, len(sums)
    parts = floats_at(totals, num_rows + 1, num_columns())
    for query in range(num_rows):
        nearest = positions[first + query // together] + 1
        farthest = max(0, nearest - window) if window else 0
        before = tops[0, query]
        top = weigh(
            like,
            scores + 4 * query * _TILE,
            _TILE,
            farthest - start,
            nearest - start,
            before,
            scaling,
            totals + 4 * num_rows * num_columns(),
        )
        if top > before:
            factor = exp((before - top) * scaling)
            for lane in range(num_columns()):
                parts[query, lane] *= factor
            for at in range(sums.shape[1]):
                sums[query, at] *= factor
        tops[0, query] = top
        for lane in range(num_columns()):
            parts[query, lane] += parts[num_rows, lane]
