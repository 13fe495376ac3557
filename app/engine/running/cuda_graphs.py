"""Decode steps recorded as CUDA graphs: launching small kernels takes longer than running them.

A replay runs the same kernels on the same addresses, without Python. There is a graph for each of a
fixed list of shapes, all of which are recorded once a variant is loaded, and none in a step. A step
takes the smallest one that it fits in. Inputs, pages and graphs stay at their addresses.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from app.engine.cache.paged_cache import tables_of
from app.engine.cache.pages import PAGE_TOKENS, pages_of
from app.engine.kernels.warm_up import Recorded
from app.engine.scheduling.scheduler import Batch
from app.engine.transfer import pinned, sent
from pruning.models.memory import is_out_of_memory
from pruning.models.recording import Recorder as CudaRecorder

logger = logging.getLogger(__name__)

_CLOSE = 0.02  # of the largest logit: how far a replay may be from what it repeats
_FEWEST_PAGES = max(1, 128 // PAGE_TOKENS)  # that a recorded step reads of each sequence
_STEP_PAGES = max(1, 64 // PAGE_TOKENS)  # granularity of other decodes: whole steps are fast

Step = Callable[[], torch.Tensor]
Recorder = Callable[[Step], Step]


class Shape(NamedTuple):
    """The size of a recorded step. Others of fewer rows and pages fit in."""

    num_rows: int  # sequences
    num_pages: int  # that are read of each


class DecodeInputs(NamedTuple):
    """A token of each sequence, and where it is. ``[rows]``, and ``[rows, pages, blocks]``."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor


DecodeStep = Callable[[DecodeInputs], torch.Tensor]  # logits [rows, vocab]


def num_read_pages(num_tokens: int) -> int:
    """The pages of each sequence that a decode reads, of which the longest has so many tokens."""
    return -(-pages_of(num_tokens) // _STEP_PAGES) * _STEP_PAGES


def shapes_to(max_rows: int, max_tokens: int, max_pages: int) -> list[Shape]:
    """All shapes for so many sequences, of so many tokens each, and of so many pages together. The
    largest come first, as smaller ones can use their memory again."""
    shapes = [
        Shape(rows, pages)
        for rows in _sizes(1, max_rows, is_fine=False)
        for pages in _sizes(_FEWEST_PAGES, pages_of(max_tokens), is_fine=True)
        if rows * pages <= max_pages
    ]
    return sorted(shapes, key=lambda shape: shape.num_rows * shape.num_pages, reverse=True)


def _sizes(least: int, most: int, *, is_fine: bool) -> Iterator[int]:
    """Powers of two times ``least`` up to ``most``, and that; with fine ones half way between."""
    size = least
    while size < most:
        yield size
        if is_fine and size % 2 == 0 and size * 3 // 2 < most:
            yield size * 3 // 2
        size *= 2
    yield most


class WrongReplay(RuntimeError):
    """A replay gave other logits than the step: a part of the step is outside of the graph."""


class DecodeGraphs:
    """The recorded decode steps of one variant, over its cache."""

    def __init__(
        self,
        name: str,
        record: Recorder,
        device: torch.device,
        shapes: Sequence[Shape],
        blocks: int,
    ) -> None:
        self._name = name  # of the variant
        self._record = record
        self._device = device
        self._num_blocks = blocks
        self._left = deque(shapes)  # to be recorded
        self._set_aside: list[Shape] = []  # for which there was no memory
        self._replays: dict[Shape, Step] = {}
        # What all of them read, from its start: one copy fills it.
        self._num_inputs = max((_num_inputs(shape, blocks) for shape in shapes), default=0)
        self._inputs: torch.Tensor | None = None

    def shape_for(self, batch: Batch, num_ahead: int = 0) -> Shape | None:
        """The smallest recorded step that fits a decode, or that so many decodes behind it."""
        if not batch.is_decode:
            return None
        num_rows = len(batch.sequences)
        num_pages = pages_of(max(seq.num_cached for seq in batch.sequences) + num_ahead + 1)
        fitting = [
            shape for shape in self._replays if num_rows <= shape[0] and num_pages <= shape[1]
        ]
        return min(fitting, key=lambda each: each.num_rows * each.num_pages, default=None)

    def run(self, batch: Batch, ahead: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return the logits ``[sequences, vocab]`` of a decode, valid until the next replay.

        With the tokens ``ahead`` that it gives, which are on the device: of the decode behind it.
        None if no recorded step has its shape.
        """
        num_ahead = 0 if ahead is None else 1
        if (shape := self.shape_for(batch, num_ahead)) is None:
            return None
        logits = self._replayed(shape, _inputs(batch, shape, num_ahead), ahead)
        return logits[: len(batch.sequences)]

    def record_next(self, step: DecodeStep) -> Recorded:
        """Record the next shape of ``step``, which is not kept: its owner has these graphs."""
        if not self._left:
            return Recorded.ALL
        shape = self._left.popleft()
        try:
            self._replays[shape] = self._recorded(shape, step)
        except Exception as error:
            self._replays.pop(shape, None)
            if not is_out_of_memory(error):
                logger.warning(
                    "decode steps of %s cannot be captured as CUDA graphs, so kernels are launched "
                    "one by one",
                    self._name,
                    exc_info=True,
                )
                return self._given_up()
            self._set_aside.append(shape)  # smaller ones may still fit
        return Recorded.ONE if self._left else self._end_of_pass()

    def _end_of_pass(self) -> Recorded:
        """Another pass tries what was set aside again."""
        if not self._set_aside:
            return Recorded.ALL
        logger.warning(
            "not enough memory to capture %d decode steps of %s now; the smallest is %s",
            len(self._set_aside),
            self._name,
            self._set_aside[-1],
        )
        self._left, self._set_aside = deque(self._set_aside), []
        return Recorded.NOT_NOW

    def _given_up(self) -> Recorded:
        self._left.clear()
        self._set_aside.clear()
        self._replays.clear()
        return Recorded.ALL

    def _recorded(self, shape: Shape, step: DecodeStep) -> Step:
        """Raises ``WrongReplay``, and any error of the recording."""
        like = _trial_inputs(shape, self._num_blocks)
        first = sent(_packed(like), self._device)
        if self._inputs is None:
            self._inputs = first.new_zeros(self._num_inputs)
        expected = step(_unpacked(first, like))
        # Zeros differ from the trial, so the test of the replay shows that it reads its inputs.
        static = self._inputs[: len(first)].zero_()
        self._replays[shape] = self._record(lambda: step(_unpacked(static, like)))
        replayed = self._replayed(shape, like)
        if not torch.allclose(
            replayed, expected, rtol=0, atol=_CLOSE * float(expected.abs().max())
        ):
            raise WrongReplay(
                "the logits of a replayed graph differ from those of the captured step"
            )
        return self._replays[shape]

    def _replayed(
        self, shape: Shape, inputs: DecodeInputs, token_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """With ``token_ids`` of the device, they are those of the first rows."""
        assert self._inputs is not None
        packed = pinned(_packed(inputs), self._device)
        self._inputs[: len(packed)].copy_(packed, non_blocking=True)
        if token_ids is not None:
            self._inputs[: len(token_ids)].copy_(token_ids)
        return self._replays[shape]()


def _inputs(batch: Batch, shape: Shape, num_ahead: int) -> DecodeInputs:
    """Rows without a sequence get the first token of the vocabulary, at the first place of the
    unit of no page. So do tokens that the host does not know, but for the place."""
    padding = [0] * (shape.num_rows - len(batch.sequences))
    positions = [seq.num_cached + num_ahead for seq in batch.sequences]
    token_ids = [
        0 if num_ahead else seq.tokens[at]
        for seq, at in zip(batch.sequences, positions, strict=True)
    ]
    units = [torch.from_numpy(seq.pages.units) for seq in batch.sequences]
    units += [units[0][:0]] * len(padding)
    both = torch.tensor([token_ids + padding, positions + padding])
    return DecodeInputs(both[0], both[1], tables_of(units, shape.num_pages))


def _trial_inputs(shape: Shape, num_blocks: int) -> DecodeInputs:
    """Rows that write into the unit of no page, and read only what such rows have written: those of
    one place write the same, and there is one for each place up to the last."""
    places = torch.arange(shape.num_rows) % PAGE_TOKENS
    tables = torch.zeros(*shape, num_blocks, dtype=torch.long)
    return DecodeInputs(places + 1, places, tables)


def _num_inputs(shape: Shape, num_blocks: int) -> int:
    """The numbers that a step of this shape reads."""
    return shape.num_rows * (2 + shape.num_pages * num_blocks)


def _packed(inputs: DecodeInputs) -> torch.Tensor:
    """The inputs one after the other in one tensor."""
    return torch.cat([each.flatten() for each in inputs])


def _unpacked(packed: torch.Tensor, like: DecodeInputs) -> DecodeInputs:
    """The parts of a tensor that have the shapes of these inputs."""
    parts = packed.split([each.numel() for each in like])
    return DecodeInputs(*(part.view(of.shape) for part, of in zip(parts, like, strict=True)))


def recorder_on(device: torch.device) -> Recorder | None:
    """Return a recorder for this device; None for a device without CUDA graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


def no_recorder(_device: torch.device) -> None:
    """Record nothing: every step launches its kernels one by one."""
