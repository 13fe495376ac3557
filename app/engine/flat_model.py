"""The forward written flat: tokens of any number of sequences over the model's own modules.

It computes the same as the model's own forward, without the layers of Python in between, which take
a tenth of a small model's step. It supports blocks of the usual kind. Other models run their own
forward, which is also the oracle in the tests.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import cycle

import torch
from transformers import PreTrainedModel

from app.engine.attention import (
    Attention,
    BatchedDecodeAttention,
    attention_windows,
    kinds_of_attention,
)
from app.engine.compiled.compilation import compile_beside
from app.engine.compiled.integers import INTEGER_PRODUCT
from app.engine.compiled.model import BLOCKS, CompiledBlocks, compiled_blocks
from app.engine.compiled.product import PRODUCTS_OF_ROWS
from app.engine.flat_block import FlatBlock, Rotation, flat_block, is_usual
from app.engine.kv_cache import SlotCache
from app.engine.tuning import OFF, Tuner, size_of
from pruning.models.architectures import Parts, architecture
from pruning.models.blocks import block_list, finish

# Ways through the blocks on a CPU, the last one for prompts only.
FLAT, COMPILED, AROUND = "torch's operations", "compiled", "compiled around products"
AROUND_BOTH = "compiled around products and attention"


class FlatModel:
    """The embeddings, all blocks and the last norm of a model."""

    def __init__(
        self, model: PreTrainedModel, parts: Parts, blocks: Iterable[FlatBlock], tuner: Tuner
    ) -> None:
        self._model = model
        self._blocks = tuple(blocks)
        self._tuner = tuner
        self._compiled: CompiledBlocks | None = None
        if tuner.chooses and model.device.type == "cpu":
            windows = attention_windows(model.config)
            self._compiled = compiled_blocks(self._blocks, windows)
        self._kinds = {block.kind for block in self._blocks}
        self._rotate = model.get_submodule(parts.rotation)
        self._rotates_by_kind = parts.rotates_by_kind

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
        cache: SlotCache,
    ) -> torch.Tensor:
        """Hidden states ``[tokens, hidden_size]`` in front of the head.

        ``token_ids`` and ``positions`` are ``[tokens]``, in the layout of ``attention`` and of the
        metadata that the cache was opened with.
        """
        hidden = self._model.get_input_embeddings()(token_ids)
        rotations = {kind: self._rotation(kind, hidden, positions) for kind in self._kinds}

        way = self._way(hidden, rotations, attention, cache)
        return finish(self._model, way())

    def _way(
        self,
        hidden: torch.Tensor,
        rotations: Mapping[str, Rotation],
        attention: Attention,
        cache: SlotCache,
    ) -> Callable[[], torch.Tensor]:
        """The fastest way through all blocks."""
        compiled = self._compiled

        def flat(part: slice = slice(None)) -> torch.Tensor:
            stream = hidden
            for block in self._blocks[part]:
                stream = block(stream, rotations[block.kind], attention, cache)
            return stream

        if compiled is None or self._blocks[0].has_hooks or not compiled.is_ready():
            return flat
        ways: dict[str, Callable[..., torch.Tensor]] = {FLAT: flat}
        if compiled.has_room(len(hidden), cache.metadata.cache_shape[1]):
            ways[COMPILED] = partial(compiled.whole, hidden, rotations, cache)
        ways[AROUND] = partial(compiled.around_products, hidden, rotations, cache)
        shape = (size_of(len(hidden)), hidden.shape[-1], len(self._blocks))
        if isinstance(attention, BatchedDecodeAttention):
            return ways[self._tuner.fastest(compiled.name, shape, hidden.dtype, ways)]
        ways[AROUND_BOTH] = partial(compiled.around_attention, hidden, rotations, attention, cache)
        turns = cycle(range(len(self._blocks)))
        of_next = {way: partial(_of_next, run, turns) for way, run in ways.items()}
        name, sees = f"{compiled.name} of prompts", size_of(max(attention.num_keys))
        return ways[self._tuner.fastest(name, (sees, *shape), hidden.dtype, of_next)]

    def turns_whole_heads(self) -> bool:
        """Whether rotation applies to whole heads; partial rotation is not supported here."""
        first = self._blocks[0]
        device = self._model.device
        somewhere = torch.zeros(1, dtype=torch.long, device=device)
        rotation = self._rotation(first.kind, torch.zeros(1, device=device), somewhere)
        return rotation.cos.shape[-1] == first.head_dim

    def _rotation(self, kind: str, hidden: torch.Tensor, positions: torch.Tensor) -> Rotation:
        kinds = [kind] if self._rotates_by_kind else []
        cos, sin = self._rotate(hidden, positions[:, None], *kinds)
        first, second = sin.chunk(2, dim=-1)
        return Rotation(cos, torch.cat((-first, second), dim=-1))


def _of_next(run: Callable[..., torch.Tensor], turns: Iterator[int]) -> torch.Tensor:
    """Run one block, whose weights are in no cache, as in a step."""
    position = next(turns)
    return run(part=slice(position, position + 1))


def flat_model(model: PreTrainedModel, tuner: Tuner = OFF) -> FlatModel | None:
    """Return the flat model; None for a model with anything that is not supported here."""
    parts = architecture(model.config).parts
    blocks = block_list(model)
    if parts is None or model.training or model.config._attn_implementation != "sdpa":
        return None
    if not all(is_usual(block, parts) for block in blocks):
        return None
    kinds = kinds_of_attention(model.config)
    decoder = FlatModel(
        model,
        parts,
        [
            flat_block(position, kind, block, parts)
            for position, (kind, block) in enumerate(zip(kinds, blocks, strict=True))
        ],
        tuner,
    )
    return decoder if decoder.turns_whole_heads() else None


def compile_steps(model: PreTrainedModel, tuner: Tuner) -> None:
    """Begin to compile what steps of this model and of its int8 form may run, if it is not kept.

    Until it is compiled, they run torch's operations.
    """
    dtype = model.dtype
    if not tuner.chooses or model.device.type != "cpu" or dtype not in PRODUCTS_OF_ROWS:
        return
    functions = [PRODUCTS_OF_ROWS[dtype]]  # the head's
    if architecture(model.config).parts is not None:
        functions.append(BLOCKS[dtype])
    if dtype == torch.bfloat16:
        functions.append(INTEGER_PRODUCT)
    compile_beside(functions)
