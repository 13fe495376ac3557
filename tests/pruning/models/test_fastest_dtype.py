"""The type that a processor multiplies faster is measured."""

import pytest
import torch

from pruning.models import products
from pruning.models.products import fastest_dtype

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("fastest", DTYPES, ids=str)
def test_it_is_found_though_some_products_are_disturbed(
    fastest: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual_s = {dtype: 1.0 if dtype is fastest else 2.0 for dtype in DTYPES}
    times = {dtype: iter([90.0, each, 80.0, each, each, each]) for dtype, each in usual_s.items()}

    def seconds(inputs: torch.Tensor, weight: torch.Tensor) -> float:
        assert inputs.dtype == weight.dtype
        return next(times[inputs.dtype])

    monkeypatch.setattr(products, "_seconds", seconds)
    assert f"torch.{fastest_dtype()}" == str(fastest)


def test_a_processor_has_one() -> None:
    assert fastest_dtype() in {"float32", "bfloat16"}
