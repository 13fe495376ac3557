"""The forward written flat: tokens of any number of sequences over the model's own modules.

It computes the same as the model's own forward, without the layers of Python in between, which take
a tenth of a small model's step. It supports blocks of the usual kind. Other models run their own
forward, which is also the oracle in the tests.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, cycle
from math import ceil
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from app.engine.attention import (
    Attention,
    AttentionShape,
    BatchedDecodeAttention,
    attention_windows,
    decode_attention,
    kinds_of_attention,
    prefill_attention,
)
from app.engine.autotuning import (
    OFF,
    Autotuner,
    Run,
    Trial,
    context_of,
    contexts_to,
    key_of,
    size_of,
    sizes_to,
)
from app.engine.cache.paged_cache import AttentionMetadata, PagedCache, UnitShape
from app.engine.cache.pages import pages_of
from app.engine.kernels.compiled.integers import INTEGER_PRODUCT
from app.engine.kernels.compiled.model import BLOCKS, CompiledBlocks, compiled_blocks
from app.engine.kernels.compiled.openmp import ParallelFunction
from app.engine.kernels.compiled.product import PRODUCTS_OF_ROWS
from app.engine.kernels.flat_block import BlockInputs, FlatBlock, Rotation, flat_block, is_usual
from app.engine.step import NEVER, Step
from pruning.models.architectures import architecture
from pruning.models.blocks import block_list, finish
from pruning.models.layout import Parts
from pruning.models.rotations import held_rotation

# Kernels of the blocks on a CPU.
FLAT, COMPILED, AROUND = "torch's operations", "compiled", "compiled around products"
AROUND_ATTENTION = "compiled around products and attention"  # of prompts

_MIN_RUN_S = 0.002  # of a trial, so that what comes with each call does not matter
_MIN_PROMPT = 16  # tokens: shorter prompts share its choices

_Part = Callable[..., torch.Tensor]  # hidden states behind the blocks of a slice, ``part``


class FlatModel:
    """The embeddings, all blocks and the last norm of a model."""

    def __init__(
        self, model: PreTrainedModel, parts: Parts, blocks: Iterable[FlatBlock], tuner: Autotuner
    ) -> None:
        self._model = model
        embeddings: Any = model.get_input_embeddings()
        self._embeddings: torch.Tensor = embeddings.weight
        self._blocks = tuple(blocks)
        self._tuner = tuner
        self._windows = attention_windows(model.config)
        self._compiled: CompiledBlocks | None = None
        if tuner.chooses and model.device.type == "cpu":
            self._compiled = compiled_blocks(self._blocks, self._windows)
        self._kinds = {block.kind for block in self._blocks}
        self._rotate = held_rotation(model.get_submodule(parts.rotation))
        self._rotates_by_kind = parts.rotates_by_kind

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: Attention,
        cache: PagedCache,
        step: Step,
    ) -> torch.Tensor:
        """Hidden states ``[tokens, hidden_size]`` in front of the head.

        ``token_ids`` and ``positions`` are ``[tokens]``, in the layout of ``attention`` and of the
        metadata of the cache. Raises ``StepInterrupted``.
        """
        hidden = self._model.get_input_embeddings()(token_ids)
        rotations = {kind: self._rotation(kind, hidden, positions) for kind in self._kinds}
        inputs = BlockInputs(hidden, rotations, cache, step.interruption)
        if step.is_reproducible and self._compiled is not None:
            hidden = self._reproducible(self._compiled, inputs, step)
        else:
            kernels = self._kernels(inputs, attention)
            is_decode = isinstance(attention, BatchedDecodeAttention)
            purpose, key = self._key(len(hidden), cache.metadata.num_seen, is_decode=is_decode)
            kernel = self._tuner.kernel(key, kernels)
            step.kernels[purpose] = kernel
            hidden = kernels[kernel]()
        return finish(self._model, hidden)

    @property
    def can_reproduce(self) -> bool:
        """Whether what a token gives depends on no other token of its step."""
        return self._compiled is not None and self._compiled.is_ready

    def trials(
        self, max_rows: int, max_prompt: int, max_tokens: int, max_cache_tokens: int
    ) -> Iterator[Trial]:
        """Trials of all choices that steps make, those of attention first.

        They have at most so many sequences of a decode, tokens of a prefill, of one sequence and of
        all. Compiled blocks take part if they are ready.
        """
        if not self._tuner.chooses or self._model.device.type != "cpu":
            return
        contexts = contexts_to(max_tokens)
        decodes = [
            (rows, context)
            for rows in sizes_to(max_rows)
            for context in contexts
            if rows * context <= max_cache_tokens
        ]
        prompts = [
            (tokens, context)
            for tokens in sizes_to(max_prompt)
            for context in contexts
            if tokens >= _MIN_PROMPT
        ]
        heads = self._attention_shape()
        yield from (heads.decode_trial(*shape) for shape in decodes)
        for shape in prompts:
            if (trial := heads.prompt_trial(*shape)) is not None:
                yield trial
        if self._compiled is not None and self._compiled.is_ready:
            yield from (self._decode_trial(*shape) for shape in decodes)
            yield from (self._prompt_trial(*shape) for shape in prompts)

    def _key(self, num_rows: int, num_seen: int, *, is_decode: bool) -> tuple[str, str]:
        """What the blocks compute in a step, and the key of the choice of their kernel.

        It has the shapes of one block and not the number of blocks, so that a model and its
        variants run the same kernel.
        """
        rows, context = size_of(num_rows), context_of(num_seen)
        if is_decode:
            name = f"decode of {rows} within {context}"
        else:
            name = f"prompts of {max(rows, _MIN_PROMPT)} within {context}"
        first = self._blocks[0]
        block = self._compiled.name if self._compiled is not None else "blocks"
        like = self._embeddings
        windows = sorted(window or 0 for window in self._windows.values())
        heads = (*first.num_heads[:2], first.head_dim)
        shape = (like.shape[1], *heads, first.inner_width, *windows)
        return f"{block}, {name}", key_of(f"{block}, {name},", like, *shape)

    def _reproducible(
        self, compiled: CompiledBlocks, inputs: BlockInputs, step: Step
    ) -> torch.Tensor:
        """Compiled blocks for as many rows at a time as have room.

        Keys and values of a row are in the cache before a later row reads them.
        """
        step.kernels["blocks"] = f"{COMPILED}, reproducible"
        metadata, num_rows, out = inputs.cache.metadata, compiled.max_rows(), []
        for start in range(0, len(inputs.hidden), num_rows):
            rows = slice(start, start + num_rows)
            inputs.cache.metadata = metadata.of(rows)
            turned = {kind: each.of(rows) for kind, each in inputs.rotations.items()}
            some = replace(inputs, hidden=inputs.hidden[rows], rotations=turned)
            out.append(compiled.whole(some))
        return out[0] if len(out) == 1 else torch.cat(out)

    def _kernels(self, inputs: BlockInputs, attention: Attention) -> Mapping[str, _Part]:
        """The kernels that this step can run. The first one is taken until they are timed."""

        def flat(part: slice = slice(None)) -> torch.Tensor:
            stream = inputs.hidden
            for block in self._blocks[part]:
                inputs.interruption.check()
                stream = block(stream, inputs.rotations[block.kind], attention, inputs.cache)
            return stream

        compiled = self._compiled
        if compiled is None or not compiled.is_ready:
            return {FLAT: flat}
        whole: dict[str, _Part] = {}
        if len(inputs.hidden) <= compiled.max_rows():
            whole[COMPILED] = partial(compiled.whole, inputs)
        kernels: dict[str, _Part] = {**whole, FLAT: flat}
        kernels[AROUND] = partial(compiled.around_products, inputs)
        if not isinstance(attention, BatchedDecodeAttention):
            kernels[AROUND_ATTENTION] = partial(compiled.around_attention, inputs, attention)
        return kernels

    def _attention_shape(self) -> AttentionShape:
        first = self._blocks[0]
        return AttentionShape(*first.num_heads[:2], first.head_dim, self._embeddings)

    def _decode_trial(self, rows: int, context: int) -> Trial:
        """Time a decode of so many sequences, each at the end of such a context."""

        def prepare() -> Mapping[str, Run]:
            tables = self._trial_tables(rows, context)
            positions = torch.full((rows,), context - 1)
            metadata = AttentionMetadata(tables, torch.arange(rows), positions, None, context)
            attention = decode_attention(
                self._windows, positions, metadata.num_tokens, self._model.dtype, self._tuner
            )
            return self._runs(metadata, attention)

        return Trial(self._key(rows, context, is_decode=True)[1], prepare)

    def _prompt_trial(self, tokens: int, context: int) -> Trial:
        """Time the last part of a prompt that fills such a context, or several shorter prompts."""

        def prepare() -> Mapping[str, Run]:
            is_packed = tokens > context
            number = tokens // context if is_packed else 1
            places = [range(0 if is_packed else context - tokens, context)] * number
            metadata = AttentionMetadata(
                self._trial_tables(number, context),
                torch.arange(number).repeat_interleave(len(places[0])),
                torch.tensor([*chain(*places)]),
                num_read=(context,) * number,
                num_seen=context,
            )
            attention = prefill_attention(
                self._windows, places, metadata.num_stored, self._embeddings, self._tuner
            )
            return self._runs(metadata, attention)

        return Trial(self._key(tokens, context, is_decode=False)[1], prepare)

    def _runs(self, metadata: AttentionMetadata, attention: Attention) -> Mapping[str, Run]:
        like = self._embeddings
        hidden = torch.randn(len(metadata.positions), like.shape[1]).to(like.dtype)
        rotations = {kind: self._rotation(kind, hidden, metadata.positions) for kind in self._kinds}
        heads = self._attention_shape()
        shape = UnitShape(heads.num_keys, heads.head_dim, like.dtype, like.device)
        cache = PagedCache(shape, int(metadata.tables.max()))
        cache.metadata = metadata
        inputs = BlockInputs(hidden, rotations, cache, NEVER)
        return self._on_parts(self._kernels(inputs, attention))

    def _trial_tables(self, num_sequences: int, context: int) -> torch.Tensor:
        """The tables of sequences that fill such a context. All blocks share the units of one."""
        num_pages = pages_of(context)
        units = torch.arange(num_sequences * num_pages).add_(1).view(num_sequences, num_pages, 1)
        return units.expand(-1, -1, len(self._blocks)).contiguous()

    def _on_parts(self, kernels: Mapping[str, _Part]) -> Mapping[str, Run]:
        """Runs of a few blocks, the next ones each time. As in a step, no cache of the processor
        has their weights."""
        first = next(iter(kernels.values()))
        first(part=slice(0, 1))
        began_s = perf_counter()
        first(part=slice(0, 1))
        num_blocks = min(ceil(_MIN_RUN_S / (perf_counter() - began_s)), len(self._blocks))
        starts = cycle(range(0, len(self._blocks) - num_blocks + 1, num_blocks))

        def run(kernel: _Part) -> torch.Tensor:
            start = next(starts)
            return kernel(part=slice(start, start + num_blocks))

        return {name: partial(run, kernel) for name, kernel in kernels.items()}

    def turns_whole_heads(self) -> bool:
        """Whether rotation applies to whole heads; partial rotation is not supported here."""
        first = self._blocks[0]
        device = self._model.device
        origin = torch.zeros(1, dtype=torch.long, device=device)
        rotation = self._rotation(first.kind, torch.zeros(1, device=device), origin)
        return rotation.cos.shape[-1] == first.head_dim

    def _rotation(self, kind: str, hidden: torch.Tensor, positions: torch.Tensor) -> Rotation:
        kinds = [kind] if self._rotates_by_kind else []
        cos, sin = self._rotate(hidden, positions[:, None], *kinds)
        first, second = sin.chunk(2, dim=-1)
        return Rotation(cos, torch.cat((-first, second), dim=-1))


def flat_model(model: PreTrainedModel, tuner: Autotuner = OFF) -> FlatModel | None:
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


def merge_layers(model: PreTrainedModel) -> None:
    """Join the weights of layers that steps run as one. Nothing may use the model meanwhile."""
    flat_model(model)


def functions_of_steps(model: PreTrainedModel, tuner: Autotuner) -> list[ParallelFunction]:
    """The compiled functions that steps of this model, or of its int8 form, may run."""
    dtype = model.dtype
    if not tuner.chooses or model.device.type != "cpu" or dtype not in PRODUCTS_OF_ROWS:
        return []
    functions = [PRODUCTS_OF_ROWS[dtype]]  # the head's
    if architecture(model.config).parts is not None:
        functions.append(BLOCKS[dtype])
    if dtype == torch.bfloat16:
        functions.append(INTEGER_PRODUCT)
    return functions
