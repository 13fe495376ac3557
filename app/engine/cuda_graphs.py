"""Decode steps recorded as CUDA graphs: launching small kernels takes longer than running them.

A replay runs the same kernels on the same addresses, without Python. So there is one graph for
each shape, with the number of sequences rounded up to a power of two. A graph is dropped when a
tensor of the cache is replaced.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from app.engine.kv_cache import SlotCache
from app.engine.scheduler import Batch
from app.engine.transfer import pinned, sent

logger = logging.getLogger(__name__)

_CLOSE = 0.02  # of the largest logit: how far a replay may be from what it repeats

Step = Callable[[], torch.Tensor]
Recorder = Callable[[Step], Step]
Shape = tuple[int, int]  # slots, and tokens per slot
# A token for each of the first slots and their positions, [slots]: logits [slots, vocab].
DecodeStep = Callable[[torch.Tensor, torch.Tensor, Shape], torch.Tensor]


class WrongReplay(RuntimeError):
    """A replay gave other logits than the step: a part of the step is outside of the graph."""


@dataclass(frozen=True)
class _Graph:
    inputs: torch.Tensor  # [2, slots]: what the step reads, token ids and positions
    replay: Step

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        self.inputs.copy_(pinned(inputs, self.inputs.device), non_blocking=True)
        return self.replay()


class DecodeGraphs:
    """The recorded decode steps of one variant, over its cache."""

    def __init__(
        self, record: Recorder, step: DecodeStep, cache: SlotCache, device: torch.device
    ) -> None:
        self.is_possible = True
        self._record = record
        self._step = step
        self._cache = cache
        self._device = device
        self._graphs: dict[Shape, _Graph] = {}
        self._on = cache.version
        self._seen: set[Shape] = set()

    def run(self, batch: Batch) -> torch.Tensor | None:
        """Return the logits ``[sequences, vocab]`` of a decode, valid until the next one.

        None if the step cannot be replayed. The first step of a shape is never recorded, because
        many shapes occur only once.
        """
        if not self.is_possible or not batch.is_decode:
            return None
        if batch.cache_shape not in self._seen:
            self._seen.add(batch.cache_shape)
            return None
        graph = self._graph(batch)
        return None if graph is None else graph.run(_inputs(batch))[: len(batch.sequences)]

    def _graph(self, batch: Batch) -> _Graph | None:
        self._drop_stale()
        graph = self._graphs.get(batch.cache_shape)
        if graph is None:
            try:
                graph = self._recorded(batch)
            except Exception:
                self.is_possible = False
                self._graphs.clear()
                logger.warning(
                    "decode steps of %s cannot be recorded, and are taken one kernel at a time",
                    batch.variant.name,
                    exc_info=True,
                )
            else:
                self._graphs[batch.cache_shape] = graph
        return graph

    def _drop_stale(self) -> None:
        if self._on != self._cache.version:
            self._graphs.clear()
            self._on = self._cache.version

    def _recorded(self, batch: Batch) -> _Graph:
        """Raises ``WrongReplay``, and any error of the recording."""
        shape = batch.cache_shape
        on_host = _inputs(batch)
        inputs = sent(on_host, self._device)
        expected = self._step(inputs[0], inputs[1], shape)  # makes the room in the cache, too
        self._drop_stale()
        static = _next(inputs, len(batch.sequences), shape)
        graph = _Graph(static, self._record(lambda: self._step(static[0], static[1], shape)))
        found = graph.run(on_host)
        if not torch.allclose(found, expected, rtol=0, atol=_CLOSE * float(expected.abs().max())):
            raise WrongReplay("the logits of a replay are not those of the step that it repeats")
        return graph


def _inputs(batch: Batch) -> torch.Tensor:
    """Token ids and positions of all slots of the shape.

    Slots without a sequence get the first token of the vocabulary at their first position. The next
    sequence in the slot overwrites it before it is read.
    """
    padding = [0] * (batch.cache_shape[0] - len(batch.sequences))
    places = [seq.num_cached for seq in batch.sequences]
    token_ids = [seq.tokens[at] for seq, at in zip(batch.sequences, places, strict=True)]
    return torch.tensor([token_ids + padding, places + padding])


def _next(inputs: torch.Tensor, num_sequences: int, shape: Shape) -> torch.Tensor:
    """Return other inputs to record with, so that the test of the replay shows that it reads them.

    The recorded step writes at the next positions of the sequences, not over their tokens.
    """
    token_ids, positions = torch.zeros_like(inputs)
    positions[:num_sequences] = (inputs[1, :num_sequences] + 1).clamp(max=shape[1] - 1)
    return torch.stack((token_ids, positions))


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
