"""Where the weights of the dense model are while it is pruned: in memory, in several processes, or
on disk with blocks that visit memory one at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.models.blocks import view
from pruning.models.forward import InMemoryPasses, Passes, StreamedPasses
from pruning.models.memory import BATCH_TOKENS, free_bytes
from pruning.models.quantize import CannotQuantize, quantized
from pruning.models.save_streamed import SHARD_BYTES, export, kept_weights
from pruning.models.store import LoadedModel, ModelStore, load, pick_device
from pruning.models.streaming import StreamedModel
from pruning.models.timing import BlockTimes, measure_streamed_times, measure_times
from pruning.search.cosine import CosineRanker
from pruning.search.ray_scoring import ClusterScorer
from pruning.search.scoring import SharedPrefixScorer, WindowScorer
from pruning.search.streamed_scoring import StreamedScorer
from pruning.sleb import Blocks
from pruning.spec import InvalidSpec
from pruning.spec.prune import PruneSpec, Quantize, Resident


class Residence(Protocol):
    """The dense model, and the steps of a pruning run that depend on where its weights are."""

    @property
    def model(self) -> PreTrainedModel:
        """Config, modules and shapes are always there; weights only if they are in memory."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def path(self) -> Path: ...

    @contextmanager
    def scorer(
        self, windows: torch.Tensor, boundaries: Sequence[int] = ()
    ) -> Iterator[WindowScorer]:
        """For the search on ``windows [num_windows, seqlen]``, as long as the context lasts."""

    def local_scorer(self, windows: torch.Tensor, boundaries: Sequence[int] = ()) -> WindowScorer:
        """In this process, for the odd evaluation."""

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        """Of all blocks on ``windows [num_windows, seqlen]``, in this process."""

    def passes(self, keep: Blocks, quantize: Quantize | None = None) -> Passes:
        """Of the model that keeps these blocks, in this process, with plain weights or others.

        Raises ``QuantizeUnavailable`` or ``CannotQuantize``.
        """

    def times(self) -> BlockTimes:
        """What one decode step takes, on the device of the run."""

    def weights(self, keep: Blocks) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` of every parameter of the model that keeps these blocks."""

    def save(self, keep: Blocks, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Write configs and weights of the model that keeps these blocks; shards are no larger."""


@dataclass(frozen=True)
class Machine:
    """What a run may use: a torch device or "auto", and bytes for hidden states, or half of what
    is free. With ``num_actors`` the search is spread over that many processes of a Ray cluster.
    ``batch_tokens`` go through a block at once, or one window if it has more. ``tasks_dir`` is a
    folder with tasks of lm-eval, which go before its own.
    """

    device: str = "auto"
    state_budget: int | None = None
    num_actors: int = 0
    batch_tokens: int = BATCH_TOKENS
    tasks_dir: Path | None = None


def reside(spec: PruneSpec, models: ModelStore, machine: Machine) -> Residence:
    """Load what has to be in memory. Raises what ``ModelStore.load`` raises, or ``InvalidSpec``."""
    if spec.resident is Resident.STREAM and machine.num_actors:
        raise InvalidSpec("resident", "streamed blocks and actors exclude each other: choose one")
    return reside_at(models.path(spec.model), spec.resident, machine, dtype=spec.dtype)


def reside_at(
    path: Path, resident: Resident, machine: Machine, *, dtype: str = "auto"
) -> Residence:
    """The model in the directory ``path``. Raises what ``models.load`` raises."""
    if resident is Resident.MODEL:
        return _InMemory(load(path, dtype=dtype, device=machine.device), dtype, machine)
    return _OnDisk(StreamedModel(path, dtype=dtype, device=machine.device), machine)


def where_it_fits(path: Path, machine: Machine) -> Resident:
    """In memory, unless its files alone are larger than what is free on the device."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    is_too_large = size > free_bytes(torch.device(pick_device(machine.device)))
    return Resident.STREAM if is_too_large else Resident.MODEL


@dataclass(frozen=True)
class _InMemory:
    loaded: LoadedModel
    dtype: str
    machine: Machine

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def path(self) -> Path:
        return self.loaded.path

    @contextmanager
    def scorer(
        self, windows: torch.Tensor, boundaries: Sequence[int] = ()
    ) -> Iterator[WindowScorer]:
        if not self.machine.num_actors:
            yield self.local_scorer(windows, boundaries)
            return
        with ClusterScorer(
            self.path,
            windows,
            num_actors=self.machine.num_actors,
            dtype=self.dtype,
            device=self.machine.device.partition(":")[0],  # which GPU, Ray decides
            state_budget=self.machine.state_budget,
            batch_tokens=self.machine.batch_tokens,
            boundaries=boundaries,
        ) as scorer:
            yield scorer

    def local_scorer(self, windows: torch.Tensor, boundaries: Sequence[int] = ()) -> WindowScorer:
        return SharedPrefixScorer(
            self.model,
            windows,
            state_budget=self.machine.state_budget,
            batch_tokens=self.machine.batch_tokens,
            boundaries=boundaries,
        )

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        return CosineRanker(self.model, windows, batch_tokens=self.machine.batch_tokens)

    def passes(self, keep: Blocks, quantize: Quantize | None = None) -> Passes:
        pruned = view(self.model, keep)
        its = pruned if quantize is None else quantized(pruned, quantize)
        return InMemoryPasses(its, batch_tokens=self.machine.batch_tokens)

    def times(self) -> BlockTimes:
        return measure_times(self.model)

    def weights(self, keep: Blocks) -> Iterator[tuple[str, torch.Tensor]]:
        yield from view(self.model, keep).named_parameters()

    def save(self, keep: Blocks, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        view(self.model, keep).save_pretrained(directory, max_shard_size=shard_bytes)


@dataclass(frozen=True)
class _OnDisk:
    streamed: StreamedModel
    machine: Machine

    @property
    def model(self) -> PreTrainedModel:
        return self.streamed.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.streamed.tokenizer

    @property
    def path(self) -> Path:
        return self.streamed.path

    @contextmanager
    def scorer(
        self, windows: torch.Tensor, boundaries: Sequence[int] = ()
    ) -> Iterator[WindowScorer]:
        yield self.local_scorer(windows, boundaries)

    def local_scorer(self, windows: torch.Tensor, boundaries: Sequence[int] = ()) -> WindowScorer:
        return StreamedScorer(
            self.streamed,
            windows,
            state_budget=self.machine.state_budget,
            batch_tokens=self.machine.batch_tokens,
            boundaries=boundaries,
        )

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        return CosineRanker(
            self.streamed,
            windows,
            batch_tokens=self.machine.batch_tokens,
            state_budget=self.machine.state_budget,
        )

    def passes(self, keep: Blocks, quantize: Quantize | None = None) -> Passes:
        if quantize is not None:
            raise CannotQuantize("a model that is streamed cannot be quantised: load it whole")
        machine = self.machine
        return StreamedPasses(self.streamed, keep, machine.state_budget, machine.batch_tokens)

    def times(self) -> BlockTimes:
        return measure_streamed_times(self.streamed)

    def weights(self, keep: Blocks) -> Iterator[tuple[str, torch.Tensor]]:
        return kept_weights(self.streamed, keep)

    def save(self, keep: Blocks, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        export(self.streamed, keep, directory, shard_bytes)
