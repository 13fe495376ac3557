"""Attention of tokens, a row each, to the slots of their sequences up to their own positions.

Threads share the rows, whose queries and keys are rotated, and then the heads of all rows.
"""

from typing import Any

import numpy as np

from app.engine.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    exp,
    floats_at,
    itemsize,
    own_floats,
)
from app.engine.compiled.openmp import Floats, barrier, compiled, inlined, share
from app.engine.compiled.records import integers_at
from app.engine.compiled.rows import norm_rows


@inlined
def attend(block: Any, step: Any, heads: Floats, attended: Floats, like: Any) -> None:
    """Write keys and values into the cache, and what the queries get into ``attended``.

    ``heads [rows, outputs]`` are queries, keys and values, side by side, of which a thread has
    written its share of the rows. The cache has numbers ``like`` these. Ends with a barrier.
    """
    slots, positions = integers_at(step.slots, step.rows), integers_at(step.positions, step.rows)
    width, num_sharing = block.head_dim, block.heads // block.key_heads
    first, last = share(step.rows)
    for row in range(first, last):
        start = step.projected + 4 * row * heads.shape[1]
        turn(block, row, start)
        at = slots[row] * block.key_heads * block.cache_tokens + positions[row]
        _store(block, start + 4 * block.heads * width, like, block.keys, at)
        _store(block, start + 4 * (block.heads + block.key_heads) * width, like, block.values, at)
    barrier()
    first, last = share(step.rows * block.heads)
    for each in range(first, last):
        row, head = each // block.heads, each % block.heads
        place = slots[row] * block.key_heads + head // num_sharing
        offset = place * block.cache_tokens * width * itemsize(like)
        _attend_one(
            block,
            step,
            positions[row] + 1,
            floats_at(step.projected + 4 * (row * heads.shape[1] + head * width), 1, width),
            array_like(like, block.keys + offset, block.cache_tokens, width),
            array_like(like, block.values + offset, block.cache_tokens, width),
            floats_at(step.attended + 4 * (row * attended.shape[1] + head * width), 1, width),
        )
    barrier()


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
    """Write the keys or values of a row, which start at an address, into their part of the cache
    ``[slots, key_heads, tokens, head_dim]``; ``at`` is the place of the first head."""
    width = block.head_dim
    new = floats_at(start, block.key_heads, width)
    for head in range(block.key_heads):
        place = (at + head * block.cache_tokens) * width * itemsize(like)
        cached = array_like(like, address + place, 1, width)
        for column in range(width):
            cached[0, column] = as_number_of(cached, new[head, column])


@compiled
def _attend_one(
    block: Any, step: Any, nearest: int, query: Floats, keys: Any, values: Any, out: Floats
) -> None:
    """Attention of one head to the tokens that it sees, of which ``nearest`` is the end."""
    farthest = max(0, nearest - block.window) if block.window else 0
    scores = own_floats(step.scores, 1, step.num_tokens)
    for token in range(farthest, nearest):
        scores[0, token] = _score(query, keys, token)
    _softmax(scores, farthest, nearest, block.scaling)
    for at in range(query.shape[1]):
        out[0, at] = np.float32(0)
    by_four = farthest + (nearest - farthest) // 4 * 4
    for token in range(farthest, by_four, 4):
        _add_four(scores, values, token, out)
    for token in range(by_four, nearest):
        weight = scores[0, token]
        for at in range(query.shape[1]):
            out[0, at] += weight * as_float(values[token, at])


@compiled
def _score(query: Floats, keys: Any, token: int) -> Any:
    total = np.float32(0)
    for at in range(query.shape[1]):
        total += query[0, at] * as_float(keys[token, at])
    return total


@compiled
def _add_four(scores: Floats, values: Any, token: int, out: Floats) -> None:
    w0, w1 = scores[0, token], scores[0, token + 1]
    w2, w3 = scores[0, token + 2], scores[0, token + 3]
    for at in range(out.shape[1]):
        near = w0 * as_float(values[token, at]) + w1 * as_float(values[token + 1, at])
        far = w2 * as_float(values[token + 2, at]) + w3 * as_float(values[token + 3, at])
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
