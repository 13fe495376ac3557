"""Linear layers in float32 on a CPU, multiplied by oneDNN, and which type is faster.

torch multiplies float32 by MKL, which uses half the width of AVX-512 on processors of other makers
than its own. oneDNN uses all of it, on any of them, and is as exact: both add up in float32.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

MIN_ROWS = 16  # of what a part of a model reads; with fewer, reading the weights takes the time
MIN_PRODUCTS = 2**24  # of numbers in a layer; with fewer, the way to oneDNN costs what it saves

_TRIED = (512, 1024)  # rows and width of the products that ``fastest_dtype`` times
_NUM_TURNS = 5

_Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def float32_products(like: torch.Tensor, num_rows: int) -> AbstractContextManager[object]:
    """Where to run a part of a model on so many rows, with tensors of the type of ``like``.

    Changes nothing for few rows, another type or device, with gradients, and without AVX-512.
    """
    is_plain = like.device.type == "cpu" and like.dtype == torch.float32
    if not is_plain or num_rows < MIN_ROWS or torch.is_grad_enabled() or not _has_wide_vectors():
        return nullcontext()
    multiply = _by_onednn()
    return nullcontext() if multiply is None else _Products(multiply)


class _Products(TorchFunctionMode):
    """Takes the place of ``linear`` for large layers."""

    def __init__(self, multiply: _Multiply) -> None:
        super().__init__()
        self._multiply = multiply

    def __torch_function__(
        self,
        func: Callable[..., object],
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is linear and not kwargs and _is_large(*args):
            return self._multiply(*args)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def fastest_dtype() -> str:
    """``float32`` or ``bfloat16``: in which this processor multiplies faster.

    Measured, in milliseconds: bfloat16 takes a sixth of the time with AMX, and up to ten times as
    long without it. On a GPU it is bfloat16.
    """
    if torch.cuda.is_available():
        return "bfloat16"
    rows, width = _TRIED
    products = {
        dtype: (torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    turns = [
        {dtype: _seconds(*numbers) for dtype, numbers in products.items()}
        for _ in range(1 + _NUM_TURNS)
    ]
    fastest = min(products, key=lambda dtype: median(turn[dtype] for turn in turns[1:]))
    return str(fastest).removeprefix("torch.")


def _seconds(inputs: torch.Tensor, weight: torch.Tensor) -> float:
    began_s = time.perf_counter()
    with float32_products(inputs, len(inputs)):
        linear(inputs, weight)
    return time.perf_counter() - began_s


def _is_large(inputs: torch.Tensor, weight: torch.Tensor, *_bias: torch.Tensor | None) -> bool:
    is_usual = inputs.dtype == weight.dtype == torch.float32 and weight.is_contiguous()
    return is_usual and inputs.numel() * len(weight) >= MIN_PRODUCTS


def _has_wide_vectors() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _by_onednn() -> _Multiply | None:
    """The operator that ``torch.compile`` uses for such layers; None if torch is without it."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():
        return None

    def multiply(
        inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        product: torch.Tensor = operator(inputs, weight, bias, "none", [], "")
        return product

    return multiply
