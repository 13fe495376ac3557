"""Norms, gates and products of rows, which are the tokens of a step. All sums are of float32."""

import math
from typing import Any

import numpy as np

from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    bytes_at,
    exp,
    floats_at,
    own_halves,
)
from app.engine.kernels.compiled.openmp import Floats, compiled
from app.engine.kernels.compiled.product import products


@compiled
def norm_rows(norm: Any, rows: Floats, out: Any, first: int, last: int) -> None:
    """Rows ``first`` to ``last`` divided by their root mean square, times the weight."""
    width = rows.shape[1]
    weight = floats_at(norm.weight, 1, width)
    for row in range(first, last):
        total = np.float32(0)
        for at in range(width):
            total += rows[row, at] * rows[row, at]
        factor = np.float32(1)
        if norm.weight:
            factor /= np.float32(math.sqrt(total / np.float32(width) + norm.epsilon))
        for at in range(width):
            scale = factor * weight[0, at] if norm.weight else factor
            out[row, at] = as_number_of(out, rows[row, at] * scale)


@compiled
def gate(block: Any, gates: Any, row: int, first: int, last: int, out: Any) -> None:
    """What is gated, of a row of gates and, behind all of them, what they gate."""
    width = out.shape[1]
    for at in range(first, last):
        number = as_float(gates[row, at])
        inner = block.slope * (number + block.cubic * number * number * number)
        gated = number * as_float(gates[row, width + at])
        out[row, at] = as_number_of(out, gated / (np.float32(1) + exp(-inner)))


@compiled
def multiply(
    step: Any, matrix: Any, inputs: Floats, first: int, last: int, out: Floats, like: Any
) -> None:
    """Products of ``inputs [rows, width]`` and the rows ``first`` to ``last`` of a matrix, into
    the same columns of ``out``. Unless its numbers are int8, they are of the kind of ``like``."""
    rows, outputs = len(inputs), matrix.outputs
    room = own_halves(step.factors, rows, matrix.inputs)
    if matrix.scales:
        values = bytes_at(matrix.values, outputs, matrix.inputs)
        products(values, inputs, room, first, last, out)
        scales = floats_at(matrix.scales, 1, outputs)
        for row in range(rows):
            for at in range(first, last):
                out[row, at] *= scales[0, at]
    else:
        weights = array_like(like, matrix.values, outputs, matrix.inputs)
        products(weights, inputs, room, first, last, out)
    if matrix.bias:
        bias = floats_at(matrix.bias, 1, outputs)
        for row in range(rows):
            for at in range(first, last):
                out[row, at] += bias[0, at]
