"""Products with int8 weights, and the choice among them by measuring on the model's own layers.

Which product is fastest depends on the processor, the shape and the number of rows. So every
product that the device has is timed once for each shape and each power of two of rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from app.engine.autotuning import OFF, Autotuner, Run, Trial, key_of
from app.engine.kernels.compiled.integers import product_of_integers
from app.engine.kernels.compiled.product import product_of_rows
from pruning.models.quantize import int8_form, quantized_layers
from pruning.models.rounding import Product, QuantizedLinear, dequantized_product

NUM_SIZES = 9  # 1, 2, 4 ... 256 rows; more rows take the choice for 256
# Of plain weights at once: on a CPU they are still in the cache when used, and on a GPU every piece
# is two launches.
_CHUNK_BYTES, _GPU_CHUNK_BYTES = 2**20, 2**30
_GPU_ROWS = 16  # at least, twice: CUDA has no integer product of fewer than 17
_MAX_ERRORS = {torch.float32: 1e-5, torch.float64: 1e-5}  # relative to the plain product
_MAX_ERROR = 0.03  # of smaller types


def packed_product(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """torch's own kernel for plain activations and int8 weights: one pass over the weights."""
    product: Product = torch.ops.aten._weight_int8pack_mm
    return product(activations.contiguous(), values, scales[:, 0])


def chunked_product(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Plain products with a few outputs at a time, whose weights are made plain before each."""
    num_bytes = _GPU_CHUNK_BYTES if values.is_cuda else _CHUNK_BYTES
    num_outputs = max(1, num_bytes // (values.shape[1] * activations.itemsize))
    parts = [linear(activations, part.to(activations.dtype)) for part in values.split(num_outputs)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).mul_(scales[:, 0])


def integer_product(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """An integer product with each activation as two int8 numbers: its 15 bits of a row's maximum.

    This is more than a bfloat16 product keeps. The sums are exact.
    """
    steps = torch.linalg.vector_norm(activations, torch.inf, -1, keepdim=True, dtype=torch.float32)
    steps.mul_(1 / (127 * 254)).clamp_min_(torch.finfo(torch.float32).tiny)
    fine = activations.div(steps).round_()
    coarse = fine.mul(1 / 254).round_()
    num_rows, width = activations.shape
    size = (2, max(num_rows, _GPU_ROWS) if values.is_cuda else num_rows, width)
    both = torch.empty(size, dtype=torch.int8, device=activations.device)
    both[0, :num_rows].copy_(coarse)
    both[1, :num_rows].copy_(fine.sub_(coarse, alpha=254))
    sums = torch._int_mm(both.flatten(0, 1), values.t()).unflatten(0, (2, -1))[:, :num_rows]
    out = sums[0].mul(254.0).add_(sums[1]).mul_(steps)
    return torch.mul(out, scales[:, 0], out=torch.empty_like(out, dtype=activations.dtype))


PRODUCTS: Mapping[str, Product] = {
    "packed": packed_product,
    "chunked": chunked_product,
    "integer": integer_product,
    "compiled integer": product_of_integers,
    "compiled floats": product_of_rows,
}


@dataclass
class ChosenProduct:
    """The fastest product for each power of two of rows, from one row on."""

    by_size: tuple[Product, ...]

    def __call__(
        self, activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        size = (len(activations) - 1).bit_length()
        product = self.by_size[min(size, len(self.by_size) - 1)]
        return product(activations, values, scales)


def int8_model(model: PreTrainedModel, tuner: Autotuner = OFF) -> PreTrainedModel:
    """The int8 form of ``model``, with the fastest products that are known for it.

    Raises ``CannotQuantize``.
    """
    made = int8_form(model)
    choose_products(made, tuner)
    return made


@torch.inference_mode()
def choose_products(model: PreTrainedModel, tuner: Autotuner) -> None:
    """Let each layer use the product that is known to be the fastest for its shape.

    Until that is known, it is the first one that this device has.
    """
    for layers in _by_shape(model):
        products = tuple(_known(layers[0], 2**size, tuner) for size in range(NUM_SIZES))
        product = layers[0].product
        if isinstance(product, ChosenProduct):  # which merged layers have as well
            product.by_size = products
            continue
        product = ChosenProduct(products)
        for layer in layers:
            layer.product = product


def product_trials(model: PreTrainedModel, tuner: Autotuner) -> Iterator[Trial]:
    """Trials of the products of an int8 form, whose layers take the fastest ones at the end."""
    if not tuner.chooses:
        return
    for layers in (shapes := _by_shape(model)):
        for size in range(NUM_SIZES):
            yield Trial(_key(layers[0], 2**size), partial(_runs, layers, 2**size))
    if shapes:
        choose_products(model, tuner)


def chosen_names(layers: Sequence[QuantizedLinear]) -> dict[str, list[str]]:
    """The chosen products by shape, ``outputs x inputs``, for 1, 2, 4 ... rows."""
    names = {product: name for name, product in PRODUCTS.items()}
    by_shape = {}
    for layer in layers:
        if isinstance(layer.product, ChosenProduct):
            shape = " x ".join(map(str, layer.values.shape))
            by_shape[shape] = [names.get(product, "plain") for product in layer.product.by_size]
    return by_shape


def _by_shape(model: PreTrainedModel) -> list[list[QuantizedLinear]]:
    """The quantized layers of a model, those of one shape together."""
    by_shape: dict[torch.Size, list[QuantizedLinear]] = {}
    for layer in quantized_layers(model):
        by_shape.setdefault(layer.values.shape, []).append(layer)
    return list(by_shape.values())


def _key(layer: QuantizedLinear, rows: int) -> str:
    return key_of(f"int8 product of {rows},", layer.scales, *layer.values.shape)


def _known(layer: QuantizedLinear, rows: int, tuner: Autotuner) -> Product:
    """The fastest product for so many rows, or the first that works as long as none is known."""
    first = tuner.kernel(_key(layer, rows), PRODUCTS)
    for name in (first, *PRODUCTS):
        if _is_right(PRODUCTS[name], _rows(layer, rows), layer):
            return PRODUCTS[name]
    return dequantized_product


def _runs(layers: Sequence[QuantizedLinear], num_rows: int) -> Mapping[str, Run]:
    rows = _rows(layers[0], num_rows)
    works = {name: each for name, each in PRODUCTS.items() if _is_right(each, rows, layers[0])}
    products = works or {"plain": dequantized_product}
    return {name: _on_each_in_turn(each, rows, layers) for name, each in products.items()}


def _rows(layer: QuantizedLinear, number: int) -> torch.Tensor:
    rows = torch.randn(number, layer.values.shape[1], device=layer.values.device)
    return rows.to(layer.scales.dtype)


def _on_each_in_turn(
    product: Product, rows: torch.Tensor, layers: Sequence[QuantizedLinear]
) -> Callable[[], None]:
    """One product with the next layer, whose weights are in no cache, as in a step."""
    turns = cycle(layers)

    def run() -> None:
        layer = next(turns)
        product(rows, layer.values, layer.scales)
        if rows.device.type == "cuda":
            torch.cuda.synchronize(rows.device)

    return run


def _is_right(product: Product, rows: torch.Tensor, layer: QuantizedLinear) -> bool:
    """Whether this device has the product for so many rows, and it is right."""
    expected = dequantized_product(rows, layer.values, layer.scales).float()
    try:
        actual = product(rows, layer.values, layer.scales).float()
    except RuntimeError:  # how torch says that it has no such kernel here
        return False
    return bool(
        (actual - expected).norm() <= _MAX_ERRORS.get(rows.dtype, _MAX_ERROR) * expected.norm()
    )
