"""A model whose weights stay on disk, and are loaded into memory one part at a time.

What visits its parts takes a model in memory as well.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from pruning.models.stored_buffers import as_parameters

_Part = Sequence[str]  # names of parameters


@dataclass(frozen=True)
class _Fetched:
    weights: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None  # recorded after the copy to CUDA, which may still run


class StreamedModel:
    """A checkpoint of which only the part in use has its weights in memory.

    ``model`` is in evaluation mode. Its parameters are on the meta device, except those of the part
    that is loaded; its buffers are always on the device. ``dtype``, ``device`` and errors are those
    of ``store.load``. Parts must be loaded from one thread, and not nested. Copies to a GPU pass
    through pinned memory of the host, which is not counted.
    """

    def __init__(self, path: Path, *, dtype: str = "auto", device: str = "auto") -> None:
        loaded = load(path, dtype=dtype, device="meta")
        self.path = path
        self.tokenizer = loaded.tokenizer
        self.model = loaded.model
        self.device = torch.device(pick_device(device))
        self._files = WeightFiles(path, self.model)
        _tie(self.model, self._files)
        _set_buffers(self.model, self.device)
        self._absent = dict(self.model.named_parameters(remove_duplicate=False))
        self._embeddings, self._blocks, self._head = _parts(self.model)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._held_bytes = 0
        self.peak_bytes = 0  # maximum bytes of weights at once, with those being copied

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """Within the context, all modules before the first block have their weights."""
        self._count(self._embeddings)
        with self._present(self._embeddings, partial(self._fetch, self._embeddings)):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        """Within the context, all modules after the last block have their weights, tied or not."""
        self._count(self._head)
        with self._present(self._head, partial(self._fetch, self._head)):
            yield

    def blocks(self, indices: Iterable[int]) -> Generator[int]:
        """Yield each index while that block has its weights. The next block is loaded meanwhile."""
        upcoming = iter(indices)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
            ahead = [self._prefetch(index, pool) for index in islice(upcoming, 1)]
            try:
                while ahead:
                    index, fetching = ahead.pop()
                    with self._present(self._blocks[index], fetching.result):
                        del fetching  # it refers to the weights
                        ahead = [
                            self._prefetch(following, pool) for following in islice(upcoming, 1)
                        ]
                        yield index
            finally:
                for index, fetching in ahead:
                    fetching.cancel()
                    self._count(self._blocks[index], -1)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` on the CPU in the model's dtype. Do not write to the values."""
        for name, stored in self._files.read(names):
            yield name, stored.to(self._absent[name].dtype)

    def _prefetch(self, index: int, pool: ThreadPoolExecutor) -> tuple[int, Future[_Fetched]]:
        part = self._blocks[index]
        self._count(part)
        return index, pool.submit(self._fetch, part)

    @contextmanager
    def _present(self, part: _Part, fetch: Callable[[], _Fetched]) -> Iterator[None]:
        """Within the context, the model has the weights of ``part``, which are counted already."""
        try:
            self._install(fetch())
            yield
        finally:
            if self._stream is not None:
                # Memory is free only after the queued kernels that read it.
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


@dataclass(frozen=True)
class ResidentModel:
    """A dense model that is in memory as a whole, as ``StreamedModel`` takes its place."""

    model: PreTrainedModel

    @property
    def device(self) -> torch.device:
        return self.model.device

    def embeddings(self) -> AbstractContextManager[None]:
        return nullcontext()

    def blocks(self, indices: Iterable[int]) -> Generator[int]:
        yield from indices

    def head(self) -> AbstractContextManager[None]:
        return nullcontext()


VisitedModel = ResidentModel | StreamedModel  # parts have their weights while they are visited


def _parts(model: PreTrainedModel) -> tuple[_Part, Sequence[_Part], _Part]:
    """Names of parameters before the first block, of every block, and after the last."""
    row, output = architecture(model.config), model.get_output_embeddings()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def under(*paths: str) -> _Part:
        return [name for name in names if name.startswith(tuple(f"{path}." for path in paths))]

    head = under(*row.tail, *(path for path, module in model.named_modules() if module is output))
    blocks = [under(f"{row.blocks}.{index}") for index in range(num_blocks(model))]
    others = {*head, *(name for block in blocks for name in block)}
    return [name for name in names if name not in others], blocks, head


def _set_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute those buffers from the config that are not stored, such as rotations."""
    with init_empty_weights(include_buffers=False):
        computed = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    as_parameters(computed)
    for name, buffer in computed.named_buffers(remove_duplicate=False):
        _put(model, name, buffer.to(device))


def _tie(model: PreTrainedModel, files: WeightFiles) -> None:
    """Tie weights as ``store.load`` does, which unties those stored with different values."""
    for name, source in model.all_tied_weights_keys.items():
        if files.are_equal(name, source):
            _put(model, name, model.get_parameter(source))


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, tensor)
