"""Measures the time of the parts of one decode step.

A step processes one token per sequence with an empty KV cache. Attention over a long context makes
blocks slower, so the speed-up of decoding is at least the one computed here. On a GPU, recordings
of the parts are timed, as a served model replays recorded steps too.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from statistics import fmean, median

import torch
from transformers import PreTrainedModel

from pruning.models.block_times import BlockTimes
from pruning.models.blocks import block_calls, block_list, final_logits, finish, num_blocks, view
from pruning.models.recording import Recorder
from pruning.models.rotations import held
from pruning.models.streaming import StreamedModel

logger = logging.getLogger(__name__)

NUM_REPEATS = 9


@torch.inference_mode()
def measure_times(model: PreTrainedModel, num_sequences: int = 1) -> BlockTimes:
    """Measure a model in memory, with one token per sequence.

    Every repeat runs all parts in turn, so that caches are in the state in which decoding leaves
    them.
    """
    step = _Step(model, num_sequences)
    blocks = [partial(step.block, index) for index in range(num_blocks(model))]
    return BlockTimes(*_medians_s([[step.embed], blocks, [step.head]], step.device))


@torch.inference_mode()
def measure_streamed_times(streamed: StreamedModel) -> BlockTimes:
    """Measure the parts of a streamed model while each is loaded, without the time of loading.

    Three blocks are measured.
    """
    with streamed.embeddings():
        step = _Step(streamed.model)
        [embedding_s] = _medians_s([[step.embed]], step.device)
    last = num_blocks(streamed.model) - 1
    blocks_s = [
        _medians_s([[partial(step.block, index)]], step.device)[0]
        for wanted in sorted({0, last // 2, last})
        for index in streamed.blocks([wanted])  # one at a time, without a prefetch
    ]
    with streamed.head():
        [head_s] = _medians_s([[step.head]], step.device)
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
        self._front = held(view(model, range(num_blocks(model))))
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


def _medians_s(parts: Sequence[Sequence[Callable[[], None]]], device: torch.device) -> list[float]:
    """The median seconds of the runs of each part, which are alike.

    All run in turn, after a warm-up turn.
    """
    if device.type == "cuda":
        parts = _recorded(parts, device)
    turns = [[_seconds(runs, device) for runs in parts] for _ in range(1 + NUM_REPEATS)]
    return [median(times) for times in zip(*turns[1:], strict=True)]


def _recorded(
    parts: Sequence[Sequence[Callable[[], None]]], device: torch.device
) -> Sequence[Sequence[Callable[[], None]]]:
    """Replays of these runs; the runs themselves if they cannot be recorded."""
    record = Recorder(device)
    try:
        return [[record(run) for run in runs] for runs in parts]
    except RuntimeError as error:
        logger.warning("parts of a decode step are timed one kernel at a time: %s", error)
        return parts


def _seconds(runs: Sequence[Callable[[], None]], device: torch.device) -> float:
    """The mean time of these runs, after which the host waits."""
    began_s = time.perf_counter()
    for run in runs:
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began_s) / len(runs)
