"""A model whose weights stay on disk: parts of it visit memory, one after the other.

What is left of it is a skeleton without weights. Knows no search and no loss.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import num_blocks
from pruning.models.safetensors_files import WeightFiles
from pruning.models.store import load, pick_device

_Part = Sequence[str]  # names of parameters


@dataclass(frozen=True)
class _Fetched:
    weights: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None  # on CUDA the copy may still be on its way


class StreamedModel:
    """A checkpoint of which only the parts at work have weights in memory.

    ``model`` is in evaluation mode: its parameters are on the meta device but for those of the part
    that visits, its buffers are always there. ``dtype`` and ``device`` mean what they mean to
    ``models.load``, and what it refuses is refused. Visits belong to one thread and do not nest.
    What is on its way to a GPU lies in pinned memory of the host as well, which is not counted.
    """

    def __init__(self, path: Path, *, dtype: str = "auto", device: str = "auto") -> None:
        loaded = load(path, dtype=dtype, device="meta")
        self.path = path
        self.tokenizer = loaded.tokenizer
        self.model = loaded.model
        self.device = torch.device(pick_device(device))
        self._files = WeightFiles(path, self.model)
        _tie(self.model, self._files)
        _give_buffers(self.model, self.device)
        self._absent = dict(self.model.named_parameters(remove_duplicate=False))
        self._embeddings, self._blocks, self._head = _parts(self.model)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._held_bytes = 0
        self.peak_bytes = 0  # most bytes of weights there at once so far, on their way included

    @property
    def weight_bytes(self) -> int:
        """Of the whole model in its dtype; tied weights count once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """Within, all that is in front of the first block has its weights."""
        self._count(self._embeddings)
        with self._present(self._embeddings, partial(self._fetch, self._embeddings)):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """Within, all that is behind the last block has its weights, tied or not."""
        self._count(self._head)
        with self._present(self._head, partial(self._fetch, self._head)):
            yield

    def blocks(self, indices: Iterable[int]) -> Generator[int]:
        """Yield each index while that block has its weights; the next one is fetched meanwhile."""
        upcoming = iter(indices)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
            ahead = [self._prefetch(index, pool) for index in islice(upcoming, 1)]
            try:
                while ahead:
                    index, fetching = ahead.pop()
                    with self._present(self._blocks[index], fetching.result):
                        del fetching  # or its weights would outlive the visit
                        ahead = [
                            self._prefetch(following, pool) for following in islice(upcoming, 1)
                        ]
                        yield index
            finally:
                for index, fetching in ahead:
                    fetching.cancel()
                    self._count(self._blocks[index], -1)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, its values in the model's dtype)`` on the CPU, not to be written to."""
        for name, stored in self._files.read(names):
            yield name, stored.to(self._absent[name].dtype)

    def _prefetch(self, index: int, pool: ThreadPoolExecutor) -> tuple[int, Future[_Fetched]]:
        part = self._blocks[index]
        self._count(part)
        return index, pool.submit(self._fetch, part)

    @contextmanager
    def _present(self, part: _Part, fetch: Callable[[], _Fetched]) -> Iterator[None]:
        """Weights that were counted already are in the model within, and gone afterwards."""
        try:
            self._install(fetch())
            yield
        finally:
            if self._stream is not None:
                # Memory that a queued kernel still reads is not free, whatever the counter says.
                torch.cuda.current_stream(self.device).synchronize()
            for name in part:
                _put(self.model, name, self._absent[name])
            self._count(part, -1)

    def _install(self, fetched: _Fetched) -> None:
        if fetched.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(fetched.copied)
        for name, weight in fetched.weights.items():
            _put(self.model, name, nn.Parameter(weight, requires_grad=False))

    def _fetch(self, part: _Part) -> _Fetched:
        if self._stream is None:
            weights = {
                name: stored.to(self.device, self._absent[name].dtype, copy=True)
                for name, stored in self._files.read(part)
            }
            return _Fetched(weights, None)
        with torch.cuda.stream(self._stream):
            weights = {
                name: values.pin_memory().to(self.device, non_blocking=True)
                for name, values in self.read(part)
            }
            return _Fetched(weights, self._stream.record_event())

    def _count(self, part: _Part, times: int = 1) -> None:
        self._held_bytes += times * sum(self._absent[name].nbytes for name in part)
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)


def _parts(model: PreTrainedModel) -> tuple[_Part, Sequence[_Part], _Part]:
    """Parameters in front of the first block, of every block, and behind the last."""
    row, output = architecture(model.config), model.get_output_embeddings()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def under(*paths: str) -> _Part:
        return [name for name in names if name.startswith(tuple(f"{path}." for path in paths))]

    head = under(*row.tail, *(path for path, module in model.named_modules() if module is output))
    blocks = [under(f"{row.blocks}.{index}") for index in range(num_blocks(model))]
    behind = {*head, *(name for block in blocks for name in block)}
    return [name for name in names if name not in behind], blocks, head


def _give_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Rotations, scales and the like are computed from the config, and stored nowhere."""
    with init_empty_weights(include_buffers=False):
        twin = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    for name, buffer in twin.named_buffers(remove_duplicate=False):
        _put(model, name, buffer.to(device))


def _tie(model: PreTrainedModel, files: WeightFiles) -> None:
    """As ``models.load`` does, which unties what is stored twice with different values."""
    for name, source in model.all_tied_weights_keys.items():
        if files.are_equal(name, source):
            _put(model, name, model.get_parameter(source))


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, tensor)
