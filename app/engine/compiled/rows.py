"""Norms, gates and products of rows, which are the tokens of a step.

All sums are of float32. A matrix is read once for all rows.
"""

import math
from typing import Any

import numpy as np

from app.engine.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    bytes_at,
    exp,
    floats_at,
)
from app.engine.compiled.openmp import Floats, compiled


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
        bent = block.slope * (number + block.cubic * number * number * number)
        passed = number * as_float(gates[row, width + at])
        out[row, at] = as_number_of(out, passed / (np.float32(1) + exp(-bent)))


@compiled
def multiply(matrix: Any, inputs: Floats, first: int, last: int, out: Floats, like: Any) -> None:
    """Products of ``inputs [rows, width]`` and the rows ``first`` to ``last`` of a matrix, into
    the same columns of ``out``. Unless its numbers are int8, they are of the kind of ``like``."""
    outputs = matrix.outputs
    if matrix.scales:
        products(bytes_at(matrix.values, outputs, matrix.inputs), inputs, first, last, out)
        scales = floats_at(matrix.scales, 1, outputs)
        for row in range(len(inputs)):
            for at in range(first, last):
                out[row, at] *= scales[0, at]
    else:
        products(array_like(like, matrix.values, outputs, matrix.inputs), inputs, first, last, out)
    if matrix.bias:
        bias = floats_at(matrix.bias, 1, outputs)
        for row in range(len(inputs)):
            for at in range(first, last):
                out[row, at] += bias[0, at]


@compiled
def products(weights: Any, inputs: Floats, first: int, last: int, out: Floats) -> None:
    num_by_four = len(inputs) - len(inputs) % 4
    for at in range(first, last - 1, 2):
        for row in range(0, num_by_four, 4):
            _two_by_four(weights, inputs, at, row, out)
    if (last - first) % 2:
        for row in range(num_by_four):
            out[row, last - 1] = _product(weights, inputs, last - 1, row)
    for at in range(first, last):
        for row in range(num_by_four, len(inputs)):
            out[row, at] = _product(weights, inputs, at, row)


@compiled
def _product(weights: Any, inputs: Floats, at: int, row: int) -> Any:
    total = np.float32(0)
    for column in range(inputs.shape[1]):
        total += as_float(weights[at, column]) * inputs[row, column]
    return total


@compiled
def _two_by_four(weights: Any, inputs: Floats, at: int, row: int, out: Floats) -> None:
    """Two outputs of four rows: each number that is read takes part in several products."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    for column in range(inputs.shape[1]):
        a, b = as_float(weights[at, column]), as_float(weights[at + 1, column])
        x0, x1 = inputs[row, column], inputs[row + 1, column]
        x2, x3 = inputs[row + 2, column], inputs[row + 3, column]
        a0, a1, a2, a3 = a0 + a * x0, a1 + a * x1, a2 + a * x2, a3 + a * x3
        b0, b1, b2, b3 = b0 + b * x0, b1 + b * x1, b2 + b * x2, b3 + b * x3
    out[row, at], out[row + 1, at], out[row + 2, at], out[row + 3, at] = a0, a1, a2, a3
    out[row, at + 1], out[row + 1, at + 1] = b0, b1
    out[row + 2, at + 1], out[row + 3, at + 1] = b2, b3
