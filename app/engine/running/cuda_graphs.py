"""Decode steps recorded as CUDA graphs: launching small kernels takes longer than running them.

A replay runs the same kernels on the same addresses, without Python. So there is one graph for
each shape, with the number of sequences rounded up to a power of two. Pages stay at their
addresses, so a graph lives as long as its variant.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from app.engine.cache.metadata import tables_of
from app.engine.cache.pages import PAGE_TOKENS, pages_of
from app.engine.scheduling.scheduler import Batch
from app.engine.transfer import pinned, sent

logger = logging.getLogger(__name__)

_CLOSE = 0.02  # of the largest logit: how far a replay may be from what it repeats
_STEP_PAGES = max(1, 64 // PAGE_TOKENS)  # granularity of what a decode reads: whole steps are fast

Step = Callable[[], torch.Tensor]
Recorder = Callable[[Step], Step]
Shape = tuple[int, int]  # sequences, and pages that are read of each


class DecodeInputs(NamedTuple):
    """A token of each sequence, and where it is. ``[rows]``, and ``[rows, pages, blocks]``."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor


DecodeStep = Callable[[DecodeInputs], torch.Tensor]  # logits [rows, vocab]


def num_read_pages(num_tokens: int) -> int:
    """The pages of each sequence that a decode reads, of which the longest has so many tokens."""
    return -(-pages_of(num_tokens) // _STEP_PAGES) * _STEP_PAGES


class WrongReplay(RuntimeError):
    """A replay gave other logits than the step: a part of the step is outside of the graph."""


@dataclass(frozen=True)
class _Graph:
    inputs: torch.Tensor  # what the step reads, in one tensor: one copy fills it
    replay: Step

    def run(self, inputs: DecodeInputs) -> torch.Tensor:
        on_host = pinned(_packed(inputs), self.inputs.device)
        self.inputs.copy_(on_host, non_blocking=True)
        return self.replay()


class DecodeGraphs:
    """The recorded decode steps of one variant, over its cache."""

    def __init__(self, record: Recorder, device: torch.device) -> None:
        self.is_possible = True
        self._record = record
        self._device = device
        self._graphs: dict[Shape, _Graph] = {}
        self._seen: set[Shape] = set()

    def run(self, batch: Batch, step: DecodeStep) -> torch.Tensor | None:
        """Return the logits ``[sequences, vocab]`` of a decode, valid until the next one.

        ``step`` is recorded and not kept: its owner has these graphs. None if the step cannot be
        replayed. The first step of a shape is never recorded, because many shapes occur only once.
        """
        if not self.is_possible or not batch.is_decode:
            return None
        shape = _shape(batch)
        if shape not in self._seen:
            self._seen.add(shape)
            return None
        graph = self._graph(batch, shape, step)
        return None if graph is None else graph.run(_inputs(batch, shape))[: len(batch.sequences)]

    def _graph(self, batch: Batch, shape: Shape, step: DecodeStep) -> _Graph | None:
        graph = self._graphs.get(shape)
        if graph is None:
            try:
                graph = self._recorded(_inputs(batch, shape), step)
            except Exception:
                self.is_possible = False
                self._graphs.clear()
                logger.warning(
                    "decode steps of %s cannot be recorded, and are taken one kernel at a time",
                    batch.variant.name,
                    exc_info=True,
                )
            else:
                self._graphs[shape] = graph
        return graph

    def _recorded(self, inputs: DecodeInputs, step: DecodeStep) -> _Graph:
        """Raises ``WrongReplay``, and any error of the recording."""
        first = sent(_packed(inputs), self._device)
        expected = step(_unpacked(first, inputs))
        # Zeros read and write the unit of no page, so the test of the replay shows that it reads
        # its inputs.
        packed = torch.zeros_like(first)
        static = _unpacked(packed, inputs)
        graph = _Graph(packed, self._record(lambda: step(static)))
        replayed = graph.run(inputs)
        if not torch.allclose(
            replayed, expected, rtol=0, atol=_CLOSE * float(expected.abs().max())
        ):
            raise WrongReplay("the logits of a replay are not those of the step that it repeats")
        return graph


def _shape(batch: Batch) -> Shape:
    longest = max(seq.num_cached for seq in batch.sequences) + 1
    return 1 << (len(batch.sequences) - 1).bit_length(), num_read_pages(longest)


def _inputs(batch: Batch, shape: Shape) -> DecodeInputs:
    """Rows without a sequence get the first token of the vocabulary, at the first place of the
    unit of no page."""
    padding = [0] * (shape[0] - len(batch.sequences))
    positions = [seq.num_cached for seq in batch.sequences]
    token_ids = [seq.tokens[at] for seq, at in zip(batch.sequences, positions, strict=True)]
    units = [torch.from_numpy(seq.pages.units) for seq in batch.sequences]
    units += [units[0][:0]] * len(padding)
    both = torch.tensor([token_ids + padding, positions + padding])
    return DecodeInputs(both[0], both[1], tables_of(units, shape[1]))


def _packed(inputs: DecodeInputs) -> torch.Tensor:
    """The inputs one after the other in one tensor."""
    return torch.cat([each.flatten() for each in inputs])


def _unpacked(packed: torch.Tensor, like: DecodeInputs) -> DecodeInputs:
    """The parts of a tensor that have the shapes of these inputs."""
    parts = packed.split([each.numel() for each in like])
    return DecodeInputs(*(part.view(of.shape) for part, of in zip(parts, like, strict=True)))


def recorder_on(device: torch.device) -> Recorder | None:
    """Return the recorder for this device; None for a device without CUDA graphs."""
    return partial(_record_cuda, device) if device.type == "cuda" else None


def no_recorder(_device: torch.device) -> None:
    """Record nothing: every step launches its kernels one by one."""


def _record_cuda(device: torch.device, step: Step) -> Step:
    """Other threads may use the device meanwhile, as those that load weights do."""
    with torch.cuda.device(device):
        usual, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(usual)
        with torch.cuda.stream(aside):
            step()  # what libraries set up at a first call cannot be recorded
        usual.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = step()

    def replay() -> torch.Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return logits

    return replay
