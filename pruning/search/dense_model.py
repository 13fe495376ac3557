"""The dense model during a run: whole in memory, or on disk with blocks loaded one at a time.

Its scorer for the search runs in this process, or in the processes of a Ray cluster.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.config import WorkerSettings
from pruning.models.architectures import CannotQuantize
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import NO_OWN, Own, num_blocks, view
from pruning.models.forward import Forward, InMemoryForward, StreamedForward
from pruning.models.memory import BATCH_TOKENS, free_bytes, leave_device
from pruning.models.quantize import quantized
from pruning.models.save_streamed import SHARD_BYTES, save_streamed, save_tower
from pruning.models.store import LoadedModel, load, pick_device, read_config
from pruning.models.streaming import ResidentModel, StreamedModel, VisitedModel
from pruning.models.timing import measure_streamed_times, measure_times
from pruning.models.towers import tower_type
from pruning.removal import Losses
from pruning.repair.walk import OpenWalk
from pruning.search.cosine import cosines
from pruning.search.ray_repair import ClusterWalk
from pruning.search.ray_scoring import ClusterScorer
from pruning.search.scoring import SharedPrefixScorer
from pruning.search.staged import GrowingScorer
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize, Resident


@dataclass(frozen=True)
class Resources:
    """What a run may use."""

    device: str = "auto"  # of torch; "auto" takes CUDA if there is any
    state_budget: int | None = None  # bytes of hidden states; None: half of the free memory
    num_actors: int = 0  # Ray actors that share the search; 0: this process
    batch_tokens: int = BATCH_TOKENS  # per call of a block, but at least one window
    tasks_dir: Path | None = None  # folder with tasks of lm-eval that replace its own
    no_repair: str | None = None  # why repair=auto is none, whatever it would give
    task_data_dir: Path | None = None  # folder with questions of tasks

    @classmethod
    def of(cls, settings: WorkerSettings, batch_tokens: int = BATCH_TOKENS) -> Self:
        return cls(
            settings.device,
            settings.state_budget,
            settings.num_actors,
            batch_tokens,
            settings.tasks_dir,
            task_data_dir=settings.task_data_dir,
        )


@dataclass(frozen=True)
class DenseModel:
    """The steps of a run that depend on where the weights are.

    Weights in memory are on the device of the run, but for the time of its actors, one of which has
    the same GPU. ``keep`` are the blocks to use, and ``own`` tensors in place of parameters of
    these blocks.
    """

    weights: LoadedModel | StreamedModel
    dtype: str
    resources: Resources

    @property
    def model(self) -> PreTrainedModel:
        """Config, modules and shapes; parameters have values only if the model is in memory."""
        return self.weights.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.weights.tokenizer

    @property
    def path(self) -> Path:
        return self.weights.path

    @property
    def every_block(self) -> Blocks:
        return tuple(range(num_blocks(self.model)))

    def _on_device(self) -> PreTrainedModel:
        model: PreTrainedModel = self.model.to(pick_device(self.resources.device))  # type: ignore[arg-type]  # of torch
        return model

    @contextmanager
    def scorer(
        self,
        windows: torch.Tensor,
        boundaries: Sequence[int] = (),
        by_divergence: bool = False,
    ) -> Iterator[GrowingScorer]:
        """The scorer of the search on ``windows [num_windows, seqlen]``, closed with the context.

        It is in this process or in actors. Windows can be scored up to each of the ``boundaries``.
        """
        how: dict[str, Any] = {"boundaries": boundaries, "by_divergence": by_divergence}
        streamed = self.weights if isinstance(self.weights, StreamedModel) else None
        if not self.resources.num_actors:
            how |= self._limits()
            yield SharedPrefixScorer(streamed or self._on_device(), windows, **how)
            return
        if streamed is None:
            leave_device(self.model)
        how |= {**self._of_actors(), "is_streamed": streamed is not None}
        with ClusterScorer(self.path, windows, **how) as scorer:
            yield scorer

    def cosines(
        self, windows: torch.Tensor, keep: Blocks, candidates: Blocks
    ) -> Iterator[tuple[int, Losses]]:
        """Metric 1 on ``windows [num_windows, seqlen]``, in this process."""
        return cosines(self.visited(), windows, keep, candidates, **self._limits())

    def forward(self, keep: Blocks, quantize: Quantize | None = None, own: Own = NO_OWN) -> Forward:
        """Forward passes in this process, with plain or quantized weights.

        Raises ``CannotQuantize``.
        """
        if isinstance(self.weights, StreamedModel):
            if quantize is not None:
                raise CannotQuantize("a streamed model cannot be quantized: load the whole model")
            return StreamedForward(self.weights, keep, own=own, **self._limits())
        pruned = view(self._on_device(), keep, own)
        pruned = pruned if quantize is None else quantized(pruned, quantize)
        return InMemoryForward(pruned, batch_tokens=self.resources.batch_tokens)

    def times(self) -> BlockTimes:
        """How long the parts of one decode step take on the device of the run."""
        if isinstance(self.weights, StreamedModel):
            return measure_streamed_times(self.weights)
        return measure_times(self._on_device())

    def visited(self) -> VisitedModel:
        """The dense model as ``repair_depths`` takes it, on the device of the run."""
        if isinstance(self.weights, StreamedModel):
            return self.weights
        return ResidentModel(self._on_device())

    def open_walk(self) -> OpenWalk | None:
        """Where ``repair_depths`` takes the windows through the blocks; None: in this process.

        To be called behind ``visited``: weights of this process leave the GPU to others that have
        them.
        """
        if not self.resources.num_actors or isinstance(self.weights, StreamedModel):
            return None
        leave_device(self.model)
        return partial(ClusterWalk, path=self.path, **self._of_actors())

    def in_dtype(self, dtype: str) -> "DenseModel":
        """With weights of the type that is published, read again if it differs."""
        own_dtype = str(read_config(self.path).dtype).removeprefix("torch.")
        computed, published = (
            own_dtype if each == "auto" else each for each in (self.dtype, dtype)
        )
        if computed == published:
            return self
        is_streamed = isinstance(self.weights, StreamedModel)
        resident = Resident.STREAM if is_streamed else Resident.MODEL
        alone = replace(self.resources, num_actors=0)  # nothing is searched
        return load_dense_model(self.path, resident, alone, dtype=published)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` of these parameters of the dense model."""
        if isinstance(self.weights, StreamedModel):
            return self.weights.read(names)
        return ((name, self.model.get_parameter(name)) for name in names)

    def save(
        self, keep: Blocks, directory: Path, shard_bytes: int = SHARD_BYTES, own: Own = NO_OWN
    ) -> None:
        """Write configs and weights, in shards of ``shard_bytes`` at most."""
        if tower_type(self.path) is not None:
            save_tower(self, keep, directory, shard_bytes, own)
        elif own or isinstance(self.weights, StreamedModel):  # not all own tensors at once
            save_streamed(self, keep, directory, shard_bytes, own)
        else:
            view(self.model, keep).save_pretrained(directory, max_shard_size=shard_bytes)

    def _limits(self) -> dict[str, Any]:
        return {
            "state_budget": self.resources.state_budget,
            "batch_tokens": self.resources.batch_tokens,
        }

    def _of_actors(self) -> dict[str, Any]:
        return {
            **self._limits(),
            "num_actors": self.resources.num_actors,
            "dtype": self.dtype,
            "device": self.resources.device.partition(":")[0],  # Ray chooses the GPU
        }


def load_dense_model(
    path: Path, resident: Resident, resources: Resources, *, dtype: str = "auto"
) -> DenseModel:
    """The model in the directory ``path``, with its weights where ``resident`` says.

    Raises what ``store.load`` raises.
    """
    is_streamed = resident is Resident.STREAM
    load_weights: Callable[..., LoadedModel | StreamedModel] = (
        StreamedModel if is_streamed else load
    )
    return DenseModel(load_weights(path, dtype=dtype, device=resources.device), dtype, resources)


def fitting_resident(path: Path, resources: Resources) -> Resident:
    """``MODEL``, unless the weight files are larger than the free memory of the device."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    is_too_large = size > free_bytes(torch.device(pick_device(resources.device)))
    return Resident.STREAM if is_too_large else Resident.MODEL
