"""Compiled blocks in the place of a model's own, with what they read and write."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from app.engine.attention import Attention
from app.engine.cache.paged_cache import PagedCache
from app.engine.kernels.compiled.attention import room_of_thread
from app.engine.kernels.compiled.block import (
    ATTENTION,
    DOWN,
    GATE_AND_UP,
    NEXT,
    OUTPUT,
    PROJECT,
    WHOLE,
    bfloat16_block,
    float32_block,
)
from app.engine.kernels.compiled.openmp import MAX_ROOM_BYTES, ParallelFunction
from app.engine.kernels.compiled.records import BLOCK, MATRIX, NORM, STEP
from app.engine.kernels.flat_block import BlockInputs, FlatBlock
from app.engine.kernels.merged_linear import GatedFeedForward, MergedLinear, MergedQuantized
from pruning.models.rounding import QuantizedLinear

_ALL = slice(None)
_Record = tuple[Any, int]  # the fields of a block, and their address
# From queries, keys and values, side by side, to what attention gives.
_Attend = Callable[[FlatBlock, _Record, torch.Tensor], torch.Tensor]
# By the type of hidden states, weights and the cache.
BLOCKS: Mapping[torch.dtype, ParallelFunction] = {
    torch.float32: ParallelFunction(float32_block),
    torch.bfloat16: ParallelFunction(bfloat16_block),
}
# Slope and cubic of x * sigmoid(slope * (x + cubic * x ** 3)), and the activation that this is.
_GELU_SLOPE = 2 * (2 / np.pi) ** 0.5
_ACTIVATIONS: Sequence[tuple[float, float, Callable[[torch.Tensor], torch.Tensor]]] = (
    (1.0, 0.0, F.silu),
    (_GELU_SLOPE, 0.044715, partial(F.gelu, approximate="tanh")),
)


class NotCompiled(Exception):
    """A part of a block for which there is no compiled function."""


class CompiledBlocks:
    """The blocks of a model as compiled functions, for steps on a CPU."""

    def __init__(self, blocks: Sequence[FlatBlock], windows: Mapping[str, int | None]) -> None:
        """Raises ``NotCompiled`` if a block has a part of another kind."""
        self._flat = tuple(blocks)
        self._kept: list[torch.Tensor] = []  # what the addresses are of
        self._step = np.zeros(1, STEP)
        self._blocks = np.zeros(len(blocks), BLOCK)
        self._dtype = _dtype_of(blocks[0])
        for fields, block in zip(self._blocks, blocks, strict=True):
            self._set(fields, block, windows[block.kind])
        self._run = BLOCKS[self._dtype]
        records = self._blocks
        widths = (
            records["width"], records["project"]["outputs"], records["gate_and_up"]["outputs"],
            records["output"]["inputs"], records["down"]["inputs"],
        )  # fmt: skip
        self._widths = [int(each.max()) for each in widths]
        shapes = {(each.num_heads[0] // each.num_heads[1], each.head_dim) for each in blocks}
        self._room_of_thread = max(room_of_thread(*shape) for shape in shapes)
        self._taken = np.zeros(len(blocks), np.int64)
        kinds = np.array([block.kind for block in blocks])
        self._of_kind = {kind: kinds == kind for kind in {block.kind for block in blocks}}
        self._blocks["column"] = range(len(blocks))
        self._cache: Callable[[], PagedCache | None] = lambda: None  # whose addresses are set
        is_quantized = bool(self._blocks["down"]["scales"].any())
        self.name = "quantized blocks" if is_quantized else "blocks"
        start, size = self._blocks.ctypes.data, self._blocks.itemsize
        self._records = [(each, start + at * size) for at, each in enumerate(self._blocks)]

    @property
    def is_ready(self) -> bool:
        """Whether they are compiled."""
        return self._run.is_ready

    def whole(self, inputs: BlockInputs, part: slice = _ALL) -> torch.Tensor:
        """Map hidden states ``[rows, width]`` to those behind this part of the blocks.

        Writes to the open cache. Each row sees its sequence up to its position. Sums have one
        order for each row, whatever other rows there are. Raises ``StepInterrupted``.
        """
        out, records = inputs.hidden.clone(), self._records[part]
        stops = np.empty(len(records), dtype=np.int64)
        with self._opened(inputs, is_whole=True):
            self._step["num_blocks"] = len(records)
            self._step["interruption"] = inputs.interruption.address
            self._step["stops"] = stops.ctypes.data
            self._run_part(*records[0], WHOLE, out, out)
        inputs.interruption.check()
        return out

    def around_products(self, inputs: BlockInputs, part: slice = _ALL) -> torch.Tensor:
        """The same with products by torch."""

        def attend(_block: FlatBlock, record: _Record, projected: torch.Tensor) -> torch.Tensor:
            attended = projected.new_empty(len(projected), int(record[0]["output"]["inputs"]))
            self._run_part(*record, OUTPUT, projected, attended)
            return attended

        return self._around(inputs, part, attend)

    def around_attention(
        self, inputs: BlockInputs, attention: Attention, part: slice = _ALL
    ) -> torch.Tensor:
        """The same with products and attention by torch."""

        def attend(block: FlatBlock, record: _Record, projected: torch.Tensor) -> torch.Tensor:
            queries = projected.new_empty(len(projected), block.num_heads[0], block.head_dim)
            self._run_part(*record, ATTENTION, projected, queries)
            cached = inputs.cache.read(block.position)
            return attention(block.kind, queries, *cached, block.scaling).flatten(1)

        return self._around(inputs, part, attend)

    def _around(self, inputs: BlockInputs, part: slice, attend: _Attend) -> torch.Tensor:
        out = inputs.hidden.clone()
        with self._opened(inputs):
            for block, record in zip(self._flat[part], self._records[part], strict=True):
                inputs.interruption.check()
                self._run_part(*record, PROJECT, out, normed := torch.empty_like(out))
                attended = attend(block, record, block.project(normed))
                self._feed_forward(block, record, block.output(attended), out)
        return out

    def _feed_forward(
        self, block: FlatBlock, record: _Record, update: torch.Tensor, hidden: torch.Tensor
    ) -> None:
        """Write the next hidden states, from what attention adds to the last."""
        feed_forward = block.feed_forward
        assert isinstance(feed_forward, GatedFeedForward)
        self._run_part(*record, GATE_AND_UP, update, normed := torch.empty_like(hidden))
        passed = hidden.new_empty(len(hidden), int(record[0]["down"]["inputs"]))
        self._run_part(*record, DOWN, feed_forward.gate_and_up(normed), passed)
        self._run_part(*record, NEXT, feed_forward.down(passed), hidden)

    def _run_part(
        self, fields: Any, address: int, part: int, source: torch.Tensor, target: torch.Tensor
    ) -> None:
        fields["part"] = part
        fields["source"], fields["target"] = source.data_ptr(), target.data_ptr()
        self._run(address)

    @contextmanager
    def _opened(self, inputs: BlockInputs, *, is_whole: bool = False) -> Iterator[None]:
        """Set what blocks read and write beside their hidden states."""
        self._set_cache(inputs.cache)
        tables = []
        for kind, of_kind in self._of_kind.items():
            rotation = inputs.rotations[kind]
            for name, table in (("cos", rotation.cos), ("sin", rotation.sin)):
                tables.append(table.float().contiguous())
                self._blocks[name][of_kind] = tables[-1].data_ptr()
        room = self._room(inputs.cache, len(inputs.hidden), is_whole=is_whole)
        yield
        del room, tables

    def _set_cache(self, cache: PagedCache) -> None:
        """Set where keys and values are, unless that is known. Their addresses never change."""
        if self._cache() is cache:
            return
        self._blocks["keys"] = cache.keys.data_ptr()
        self._blocks["values"] = cache.values.data_ptr()
        self._blocks["num_units"] = cache.keys.shape[1]
        self._cache = ref(cache)

    def max_rows(self) -> int:
        """The rows for which whole blocks have room. Each thread has the inputs of all rows."""
        one, two = (sum(self._sizes(rows, is_whole=True).values()) for rows in (1, 2))
        return (MAX_ROOM_BYTES // 4 - (2 * one - two)) // (two - one)

    def _room(self, cache: PagedCache, rows: int, *, is_whole: bool) -> torch.Tensor:
        """Set the fields of a step, which uses this room."""
        metadata = cache.metadata
        sizes = self._sizes(rows, is_whole=is_whole)
        room = torch.empty(sum(sizes.values()))
        address, step = room.data_ptr(), self._step[0]
        for name, size in sizes.items():
            step[name] = address
            address += 4 * size
        step["rows"], step["room_of_thread"] = rows, self._room_of_thread
        self._taken[:] = 0
        step["taken"] = self._taken.ctypes.data
        step["tables"] = metadata.tables.data_ptr()
        step["num_pages"], step["table_width"] = metadata.tables.shape[1:]
        step["owners"] = metadata.owners.data_ptr()
        step["positions"] = metadata.positions.data_ptr()
        return room

    def _sizes(self, rows: int, *, is_whole: bool) -> Mapping[str, int]:
        """The numbers of float32 of each part of the room."""
        threads = torch.get_num_threads()
        widest, project, gate_and_up, output, down = self._widths
        return {
            "stream": rows * widest,
            "normed": threads * widest * (rows if is_whole else 1),
            "projected": rows * (max(project, gate_and_up) if is_whole else project),
            "attended": rows * output,
            "between": rows * down * is_whole,
            "update": rows * widest * is_whole,
            "room": threads * self._room_of_thread,
            "factors": threads * rows * max(widest, output, down) * is_whole,
        }

    def _set(self, fields: Any, block: FlatBlock, window: int | None) -> None:
        feed_forward = block.feed_forward
        if not isinstance(feed_forward, GatedFeedForward):
            raise NotCompiled(type(feed_forward).__name__)
        if _dtype_of(block) != self._dtype or self._dtype not in BLOCKS:
            raise NotCompiled(str(_dtype_of(block)))
        fields["step"] = self._step.ctypes.data
        fields["project"] = self._matrix(block.project)
        fields["output"] = self._matrix(block.output)
        fields["gate_and_up"] = self._matrix(feed_forward.gate_and_up)
        fields["down"] = self._matrix(feed_forward.down)
        width = int(fields["output"]["outputs"])
        names = ("before", "after", "before_feed", "after_feed")
        for name, norm in zip(names, block.norms, strict=True):
            fields[name] = self._norm(norm)
        for name, norm in zip(("query_norm", "key_norm"), block.head_norms, strict=False):
            fields[name] = self._norm(norm)
        fields["width"], fields["head_dim"] = width, block.head_dim
        fields["heads"], fields["key_heads"], _ = block.num_heads
        fields["window"], fields["is_rotated"] = window or 0, block.is_rotated
        fields["scaling"], fields["input_scale"] = block.scaling, block.input_scale
        fields["slope"], fields["cubic"] = _activation(feed_forward.activation)

    def _matrix(self, layer: Any) -> Any:
        """The ``MATRIX`` of a layer."""
        fields = np.zeros((), MATRIX)
        match layer:
            case MergedQuantized() | QuantizedLinear() if layer.scales.shape[1] == 1:
                weight = layer.values
                fields["scales"] = self._floats(layer.scales)
            case MergedLinear() | nn.Linear() if layer.weight.dtype == self._dtype:
                weight = layer.weight
            case _:
                raise NotCompiled(type(layer).__name__)
        if (isinstance(layer, nn.Module) and layer._forward_hooks) or not weight.is_contiguous():
            raise NotCompiled(type(layer).__name__)
        self._kept.append(weight)
        fields["values"] = weight.data_ptr()
        fields["outputs"], fields["inputs"] = weight.shape
        if layer.bias is not None:
            fields["bias"] = self._floats(layer.bias)
        return fields

    def _norm(self, norm: nn.Module) -> Any:
        """The ``NORM`` of a module, which must divide by the root mean square."""
        fields = np.zeros((), NORM)
        if isinstance(norm, nn.Identity):
            return fields
        own = next(norm.parameters(), None)
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if own is None or epsilon is None:
            raise NotCompiled(type(norm).__name__)
        width = own.numel()
        weight = norm.forward(torch.ones(1, width))[0] * (1 + epsilon) ** 0.5
        sample = torch.linspace(-2, 3, width)[None]
        expected = F.rms_norm(sample, (width,), weight, epsilon)
        if not torch.allclose(norm.forward(sample), expected, rtol=1e-3, atol=1e-5):
            raise NotCompiled(type(norm).__name__)
        fields["weight"], fields["width"] = self._floats(weight), width
        fields["epsilon"] = epsilon
        return fields

    def _floats(self, tensor: torch.Tensor) -> int:
        """The address of a float32 copy."""
        copy = tensor.detach().float().flatten().clone()
        self._kept.append(copy)
        return copy.data_ptr()


def compiled_blocks(
    blocks: Sequence[FlatBlock], windows: Mapping[str, int | None]
) -> CompiledBlocks | None:
    """The blocks compiled; None where that is not possible."""
    try:
        return CompiledBlocks(blocks, windows)
    except NotCompiled:
        return None


def _dtype_of(block: FlatBlock) -> torch.dtype:
    """The type of the hidden states: of the norms, as matrices may be quantized."""
    parameters = (each for norm in block.norms for each in norm.parameters())
    return next(each.dtype for each in parameters)


def _activation(activation: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
    """Slope and cubic of an activation."""
    sample = torch.linspace(-6, 6, 61)
    for slope, cubic, known in _ACTIVATIONS:
        if torch.allclose(activation(sample), known(sample), atol=1e-5):
            return slope, cubic
    raise NotCompiled(repr(activation))
