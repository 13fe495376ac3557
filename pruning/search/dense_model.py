"""The dense model during a run: whole in memory, or on disk with blocks loaded one at a time.

Its scorer for the search runs in this process, or in the processes of a Ray cluster.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.config import WorkerSettings
from pruning.models.architectures import CannotQuantize
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import NO_OWN, Own, view
from pruning.models.forward import Forward, InMemoryForward, StreamedForward
from pruning.models.memory import BATCH_TOKENS, free_bytes, leave_device
from pruning.models.quantize import quantized
from pruning.models.save_streamed import SHARD_BYTES, save_streamed
from pruning.models.save_tower import save_tower
from pruning.models.store import LoadedModel, load, pick_device
from pruning.models.streaming import StreamedModel
from pruning.models.timing import measure_streamed_times, measure_times
from pruning.models.towers import tower_type
from pruning.repair.repair import ResidentModel, VisitedModel
from pruning.repair.walk import OpenWalk
from pruning.search.cosine import CosineRanker
from pruning.search.objective import Objective
from pruning.search.ray_repair import ClusterWalk
from pruning.search.ray_scoring import ClusterScorer
from pruning.search.scoring import SharedPrefixScorer
from pruning.search.streamed_scoring import StreamedScorer
from pruning.search.window_scorer import GrowingScorer
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize, Resident


class DenseModel(Protocol):
    """The steps of a run that depend on where the weights are.

    ``keep`` are the blocks to use, and ``own`` tensors in place of parameters of these blocks.
    """

    @property
    def model(self) -> PreTrainedModel:
        """Config, modules and shapes; parameters have values only if the model is in memory."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def path(self) -> Path: ...

    @property
    def resources(self) -> "Resources": ...

    @contextmanager
    def scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> Iterator[GrowingScorer]:
        """The scorer of the search on ``windows [num_windows, seqlen]``, closed with the context.

        Windows can be scored up to each of the ``boundaries``.
        """

    def local_scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> GrowingScorer:
        """A scorer in this process."""

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        """Metric 1 on ``windows [num_windows, seqlen]``, in this process."""

    def forward(self, keep: Blocks, quantize: Quantize | None = None, own: Own = NO_OWN) -> Forward:
        """Forward passes in this process, with plain or quantized weights.

        Raises ``CannotQuantize``.
        """

    def times(self) -> BlockTimes:
        """How long the parts of one decode step take on the device of the run."""

    def visited(self) -> VisitedModel:
        """The dense model as ``repair_depths`` takes it."""

    def open_walk(self) -> OpenWalk | None:
        """Where ``repair_depths`` takes the windows through the blocks; None: in this process.

        Weights of this process leave the GPU to others that have them.
        """

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` of these parameters of the dense model."""

    def save(
        self,
        keep: Blocks,
        directory: Path,
        shard_bytes: int = SHARD_BYTES,
        own: Own = NO_OWN,
    ) -> None:
        """Write configs and weights, in shards of ``shard_bytes`` at most."""


@dataclass(frozen=True)
class Resources:
    """What a run may use."""

    device: str = "auto"  # of torch; "auto" takes CUDA if there is any
    state_budget: int | None = None  # bytes of hidden states; None: half of the free memory
    num_actors: int = 0  # Ray actors that share the search; 0: this process
    batch_tokens: int = BATCH_TOKENS  # per call of a block, but at least one window
    tasks_dir: Path | None = None  # folder with tasks of lm-eval that replace its own
    no_repair: str | None = None  # why repair=auto is none, whatever it would give

    @classmethod
    def of(cls, settings: WorkerSettings, batch_tokens: int = BATCH_TOKENS) -> Self:
        return cls(
            settings.device,
            settings.state_budget,
            settings.num_actors,
            batch_tokens,
            settings.tasks_dir,
        )


def load_dense_model(
    path: Path, resident: Resident, resources: Resources, *, dtype: str = "auto"
) -> DenseModel:
    """The model in the directory ``path``, with its weights where ``resident`` says.

    Raises what ``store.load`` raises.
    """
    if resident is Resident.MODEL:
        return _InMemory(load(path, dtype=dtype, device=resources.device), dtype, resources)
    return _OnDisk(StreamedModel(path, dtype=dtype, device=resources.device), dtype, resources)


def fitting_resident(path: Path, resources: Resources) -> Resident:
    """``MODEL``, unless the weight files are larger than the free memory of the device."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    is_too_large = size > free_bytes(torch.device(pick_device(resources.device)))
    return Resident.STREAM if is_too_large else Resident.MODEL


@contextmanager
def _scorer_of(
    dense: "_InMemory | _OnDisk",
    windows: torch.Tensor,
    boundaries: Sequence[int],
    objective: Objective,
    *,
    is_streamed: bool,
) -> Iterator[GrowingScorer]:
    """The scorer of the search, in this process or in actors."""
    resources = dense.resources
    if not resources.num_actors:
        yield dense.local_scorer(windows, boundaries, objective)
        return
    with ClusterScorer(
        dense.path,
        windows,
        num_actors=resources.num_actors,
        dtype=dense.dtype,
        device=resources.device.partition(":")[0],  # Ray chooses the GPU
        state_budget=resources.state_budget,
        batch_tokens=resources.batch_tokens,
        boundaries=boundaries,
        objective=objective,
        is_streamed=is_streamed,
    ) as scorer:
        yield scorer


@dataclass(frozen=True)
class _InMemory:
    """On the device of the run, but for the time of its actors, one of which has the same GPU."""

    loaded: LoadedModel
    dtype: str
    resources: Resources

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def path(self) -> Path:
        return self.loaded.path

    def _on_device(self) -> PreTrainedModel:
        model: PreTrainedModel = self.model.to(pick_device(self.resources.device))  # type: ignore[arg-type]  # of torch
        return model

    @contextmanager
    def scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> Iterator[GrowingScorer]:
        if self.resources.num_actors:
            leave_device(self.model)
        with _scorer_of(self, windows, boundaries, objective, is_streamed=False) as scorer:
            yield scorer

    def local_scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> GrowingScorer:
        return SharedPrefixScorer(
            self._on_device(),
            windows,
            state_budget=self.resources.state_budget,
            batch_tokens=self.resources.batch_tokens,
            boundaries=boundaries,
            objective=objective,
        )

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        return CosineRanker(self._on_device(), windows, batch_tokens=self.resources.batch_tokens)

    def forward(self, keep: Blocks, quantize: Quantize | None = None, own: Own = NO_OWN) -> Forward:
        pruned = view(self._on_device(), keep, own)
        pruned = pruned if quantize is None else quantized(pruned, quantize)
        return InMemoryForward(pruned, batch_tokens=self.resources.batch_tokens)

    def times(self) -> BlockTimes:
        return measure_times(self._on_device())

    def visited(self) -> VisitedModel:
        return ResidentModel(self.model)

    def open_walk(self) -> OpenWalk | None:
        resources = self.resources
        if not resources.num_actors:
            return None
        leave_device(self.model)
        return partial(
            ClusterWalk,
            path=self.path,
            num_actors=resources.num_actors,
            dtype=self.dtype,
            device=resources.device.partition(":")[0],  # Ray chooses the GPU
            state_budget=resources.state_budget,
            batch_tokens=resources.batch_tokens,
        )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, self.model.get_parameter(name)) for name in names)

    def save(
        self,
        keep: Blocks,
        directory: Path,
        shard_bytes: int = SHARD_BYTES,
        own: Own = NO_OWN,
    ) -> None:
        if tower_type(self.path) is not None:
            save_tower(self, keep, directory, shard_bytes, own)
        elif own:  # a view would need all own tensors at once
            save_streamed(self, keep, directory, shard_bytes, own)
        else:
            view(self.model, keep).save_pretrained(directory, max_shard_size=shard_bytes)


@dataclass(frozen=True)
class _OnDisk:
    streamed: StreamedModel
    dtype: str
    resources: Resources

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
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> Iterator[GrowingScorer]:
        with _scorer_of(self, windows, boundaries, objective, is_streamed=True) as scorer:
            yield scorer

    def local_scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> GrowingScorer:
        return StreamedScorer(
            self.streamed,
            windows,
            state_budget=self.resources.state_budget,
            batch_tokens=self.resources.batch_tokens,
            boundaries=boundaries,
            objective=objective,
        )

    def cosine_ranker(self, windows: torch.Tensor) -> CosineRanker:
        return CosineRanker(
            self.streamed,
            windows,
            batch_tokens=self.resources.batch_tokens,
            state_budget=self.resources.state_budget,
        )

    def forward(self, keep: Blocks, quantize: Quantize | None = None, own: Own = NO_OWN) -> Forward:
        if quantize is not None:
            raise CannotQuantize("a streamed model cannot be quantized: load the whole model")
        return StreamedForward(
            self.streamed, keep, self.resources.state_budget, self.resources.batch_tokens, own
        )

    def times(self) -> BlockTimes:
        return measure_streamed_times(self.streamed)

    def visited(self) -> VisitedModel:
        return self.streamed

    def open_walk(self) -> OpenWalk | None:
        return None

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        return self.streamed.read(names)

    def save(
        self,
        keep: Blocks,
        directory: Path,
        shard_bytes: int = SHARD_BYTES,
        own: Own = NO_OWN,
    ) -> None:
        if tower_type(self.path) is not None:
            save_tower(self, keep, directory, shard_bytes, own)
        else:
            save_streamed(self, keep, directory, shard_bytes, own)
