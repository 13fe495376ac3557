"""Attention of tokens, a row each, to the pages of their sequences up to their own positions.

Threads share the rows, whose queries and keys are rotated, and then the heads of all rows.
"""

from typing import Any

import numpy as np

from app.engine.cache.pages import PAGE_TOKENS
from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    exp,
    floats_at,
    itemsize,
    own_floats,
)
from app.engine.kernels.compiled.openmp import Floats, barrier, compiled, inlined, share
from app.engine.kernels.compiled.records import integers_at
from app.engine.kernels.compiled.rows import norm_rows


@inlined
def attend(block: Any, step: Any, heads: Floats, attended: Floats, like: Any) -> None:
    """Write keys and values into their pages, and what the queries get into ``attended``.

    ``heads [rows, outputs]`` are queries, keys and values, side by side, of which a thread has
    written its share of the rows. Pages have numbers ``like`` these. Ends with a barrier.
    """
    positions = integers_at(step.positions, step.rows)
    width, num_sharing = block.head_dim, block.heads // block.key_heads
    first, last = share(step.rows)
    for row in range(first, last):
        start = step.projected + 4 * row * heads.shape[1]
        turn(block, row, start)
        page, offset = positions[row] // PAGE_TOKENS, positions[row] % PAGE_TOKENS
        at = _unit(block, step, row, page) * PAGE_TOKENS + offset
        _store(block, start + 4 * block.heads * width, like, block.keys, at)
        _store(block, start + 4 * (block.heads + block.key_heads) * width, like, block.values, at)
    barrier()
    first, last = share(step.rows * block.heads)
    for each in range(first, last):
        row, head = each // block.heads, each % block.heads
        query = step.projected + 4 * (row * heads.shape[1] + head * width)
        out = step.attended + 4 * (row * attended.shape[1] + head * width)
        _attend_one(
            block,
            step,
            row,
            head // num_sharing,
            floats_at(query, 1, width),
            floats_at(out, 1, width),
            like,
        )
    barrier()


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
def _attend_one(
    block: Any, step: Any, row: int, key_head: int, query: Floats, out: Floats, like: Any
) -> None:
    """Attention of one head of a row to the tokens that it sees, a page at a time."""
    nearest = integers_at(step.positions, step.rows)[row] + 1
    farthest = max(0, nearest - block.window) if block.window else 0
    scores = own_floats(step.scores, 1, step.num_tokens)
    first_page, last_page = farthest // PAGE_TOKENS, (nearest - 1) // PAGE_TOKENS
    for page in range(first_page, last_page + 1):
        start = page * PAGE_TOKENS
        keys = _tokens_of(block, step, row, key_head, page, block.keys, like)
        for token in range(max(farthest, start), min(nearest, start + PAGE_TOKENS)):
            scores[0, token] = _score(query, keys, token - start)
    _softmax(scores, farthest, nearest, block.scaling)
    for at in range(query.shape[1]):
        out[0, at] = np.float32(0)
    for page in range(first_page, last_page + 1):
        start = page * PAGE_TOKENS
        values = _tokens_of(block, step, row, key_head, page, block.values, like)
        first, last = max(farthest, start), min(nearest, start + PAGE_TOKENS)
        _add_weighted(scores, values, start, first, last, out)


@compiled
def _tokens_of(
    block: Any, step: Any, row: int, key_head: int, page: int, address: int, like: Any
) -> Any:
    """The keys or values of a head in a page of the sequence of a row, ``[tokens, head_dim]``."""
    place = key_head * block.num_units + _unit(block, step, row, page)
    size = PAGE_TOKENS * block.head_dim * itemsize(like)
    return array_like(like, address + place * size, PAGE_TOKENS, block.head_dim)


@compiled
def _add_weighted(
    scores: Floats, values: Any, start: int, first: int, last: int, out: Floats
) -> None:
    """Add the values of the tokens ``first`` to ``last`` of the page that starts at ``start``."""
    by_four = first + (last - first) // 4 * 4
    for token in range(first, by_four, 4):
        _add_four(scores, values, token, start, out)
    for token in range(by_four, last):
        weight = scores[0, token]
        for at in range(out.shape[1]):
            out[0, at] += weight * as_float(values[token - start, at])


@compiled
def _score(query: Floats, keys: Any, token: int) -> Any:
    total = np.float32(0)
    for at in range(query.shape[1]):
        total += query[0, at] * as_float(keys[token, at])
    return total


@compiled
def _add_four(scores: Floats, values: Any, token: int, start: int, out: Floats) -> None:
    w0, w1 = scores[0, token], scores[0, token + 1]
    w2, w3 = scores[0, token + 2], scores[0, token + 3]
    place = token - start
    for at in range(out.shape[1]):
        near = w0 * as_float(values[place, at]) + w1 * as_float(values[place + 1, at])
        far = w2 * as_float(values[place + 2, at]) + w3 * as_float(values[place + 3, at])
        out[0, at] += near + far


@compiled
def _softmax(scores: Floats, first: int, last: int, scaling: Any) -> None:
    """Shares that sum up to one, in the place of scores."""
    top = np.float32(-np.inf)
    for token in range(first, last):
        top = max(top, scores[0, token])
    total = np.float32(0)
    for token in range(first, last):
        weight = exp((scores[0, token] - top) * scaling)
        scores[0, token] = weight
        total += weight
    for token in range(first, last):
        scores[0, token] /= total
