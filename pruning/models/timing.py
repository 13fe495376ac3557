"""The time of the parts of one decode step, and the speed-up of removals that follows from it.

A step processes one token per sequence with an empty KV cache. Attention over a long context makes
blocks slower, so the speed-up of decoding is at least the one computed here.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import block_calls, block_list, final_logits, finish, num_blocks, view
from pruning.models.streaming import StreamedModel
from pruning.spec import TargetUnreachable

_NUM_REPEATS = 9


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of each part of one decode step."""

    embedding_s: float  # all before the first block, with masks and rotations
    block_s: float  # one block
    head_s: float  # all after the last block: norm and logits

    def step_s(self, num_blocks: int) -> float:
        """Seconds of a step through ``num_blocks`` blocks."""
        return self.embedding_s + num_blocks * self.block_s + self.head_s

    def speedup(self, num_blocks: int, num_remove: int) -> float:
        """Time of a step with all ``num_blocks`` blocks, divided by that without ``num_remove``."""
        return self.step_s(num_blocks) / self.step_s(num_blocks - num_remove)

    def removals_for(self, speedup: float, num_blocks: int, most: int) -> int:
        """The fewest removals that make decoding ``speedup`` times as fast.

        Raises ``TargetUnreachable`` if ``most`` removals do not.
        """
        for num_remove in range(1, most + 1):
            if self.speedup(num_blocks, num_remove) >= speedup:
                return num_remove
        raise TargetUnreachable(
            "target_speedup",
            f"target_speedup={speedup} is out of reach: without all {most} free blocks of "
            f"{num_blocks} it is {self.speedup(num_blocks, most):.4g}. One decode step takes "
            f"{1e3 * self.embedding_s:.3g} ms for the embeddings, {1e3 * self.block_s:.3g} ms for "
            f"each block and {1e3 * self.head_s:.3g} ms for the head; ask for less or protect "
            "fewer blocks",
        )


@torch.inference_mode()
def measure_times(model: PreTrainedModel, num_sequences: int = 1) -> BlockTimes:
    """Measure a model in memory, with one token per sequence.

    Every repeat runs all parts in turn, so that caches are in the state in which decoding leaves
    them.
    """
    step = _Step(model, num_sequences)
    blocks = [partial(step.block, index) for index in range(num_blocks(model))]
    embedding_s, *blocks_s, head_s = _medians_s([step.embed, *blocks, step.head], step.device)
    return BlockTimes(embedding_s, fmean(blocks_s), head_s)


@torch.inference_mode()
def measure_streamed_times(streamed: StreamedModel) -> BlockTimes:
    """Measure the parts of a streamed model while each is loaded, without the time of loading.

    Three blocks are measured.
    """
    with streamed.embeddings():
        step = _Step(streamed.model)
        [embedding_s] = _medians_s([step.embed], step.device)
    last = num_blocks(streamed.model) - 1
    blocks_s = [
        _medians_s([partial(step.block, index)], step.device)[0]
        for wanted in sorted({0, last // 2, last})
        for index in streamed.blocks([wanted])  # one at a time, without a prefetch
    ]
    with streamed.head():
        [head_s] = _medians_s([step.head], step.device)
    return BlockTimes(embedding_s, fmean(blocks_s), head_s)


class _AtBlocks(Exception):
    """The model has reached its first block."""


class _Step:
    """The parts of a decode step. Must be created while the embeddings have their weights."""

    def __init__(self, model: PreTrainedModel, num_sequences: int = 1) -> None:
        self.device = next(model.get_input_embeddings().parameters()).device
        self._model = model
        self._tokens = torch.zeros((num_sequences, 1), dtype=torch.long, device=self.device)
        self._hidden, self._calls = block_calls(model, self._tokens)
        self._front = view(model, range(num_blocks(model)))
        block_list(self._front)[0].__dict__["forward"] = _stop

    def embed(self) -> None:
        with suppress(_AtBlocks):
            self._front.base_model(self._tokens, use_cache=False)

    def block(self, index: int) -> None:
        self._calls[index](self._hidden)

    def head(self) -> None:
        final_logits(self._model, finish(self._model, self._hidden))


def _stop(*_args: object, **_kwargs: object) -> None:
    raise _AtBlocks


def _medians_s(runs: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """The median seconds of each run. All run in turn, after a warm-up turn."""
    turns = [[_seconds(run, device) for run in runs] for _ in range(1 + _NUM_REPEATS)]
    return [median(times) for times in zip(*turns[1:], strict=True)]


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    began_s = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s
