"""The models that are loaded. Dense weights are read once; every variant of them is a view."""

from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from transformers import PreTrainedTokenizerBase

from app.engine.variant import Variant, make_variant
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from app.models.weights import LoadedWeights, Source, Weights
from pruning.checkpoints.store import CheckpointStore
from pruning.models.safetensors_files import weight_sizes
from pruning.models.store import ModelStore, NotAModel


class ModelReplaced(RuntimeError):
    """The loaded weights are not those that a view was found on."""


@dataclass(frozen=True)
class ServedModel:
    """A variant ready to generate, with what turns text into its tokens and back."""

    entry: ModelEntry
    variant: Variant
    tokenizer: PreTrainedTokenizerBase


class ModelRegistry:
    """Names to variants, loaded when first asked for. Safe from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        models: ModelStore,
        checkpoints: CheckpointStore,
        *,
        device: str = "auto",
        max_weight_bytes: int | None = None,
    ) -> None:
        self.catalog = catalog
        self._models = models
        self._checkpoints = checkpoints
        self._device = device
        self._weights = LoadedWeights(device, max_weight_bytes)
        self._lock = Lock()  # of the variants

    def get(self, name: str) -> ServedModel:
        """Waits for weights if it must, which takes seconds to minutes; raises as ``begin``."""
        return self.begin(name).result()

    def begin(self, name: str) -> "Future[ServedModel]":
        """The variant of this name, without waiting for weights that are being read.

        Raises what ``Catalog.resolve`` does, and, here or by the future, ``UnknownModel``,
        ``NotAModel``, ``CheckpointCorrupt``, ``ModelReplaced`` or ``NoRoomForWeights``.
        """
        entry = self.catalog.resolve(name)
        served: Future[ServedModel] = Future()
        served.set_running_or_notify_cancel()

        def serve(weights: "Future[Weights]") -> None:
            try:
                served.set_result(self._served(entry, weights.result()))
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                served.set_exception(error)

        self._weights.get(self._source(entry)).add_done_callback(serve)
        return served

    def find(self, name: str) -> ModelEntry:
        """As ``Catalog.resolve``, but for what is loaded though its directory is gone."""
        try:
            return self.catalog.resolve(name)
        except UnknownModel as error:
            if name not in self._weights.loaded():
                raise
            return ModelEntry(name, name, None, None, error=str(error))

    def is_loaded(self, entry: ModelEntry) -> bool:
        """Whether its weights, or the view that it is, are there for the next request."""
        return entry.name in self._weights.loaded() or self._view(entry) is not None

    def weight_bytes(self) -> Mapping[str, int]:
        """Of all that is loaded, by name. Views have none: theirs are their dense parent's."""
        return {name: weights.num_bytes for name, weights in self._weights.loaded().items()}

    def loaded_variants(self) -> list[Variant]:
        """All that were asked for, of what is in memory."""
        weights = self._weights.loaded().values()
        with self._lock:
            return [variant for its in weights for variant in its.variants.values()]

    def variants(self, entry: ModelEntry) -> Collection[Variant]:
        """Those that could not run without what ``drop`` lets go of."""
        own = self._weights.loaded().get(entry.name)
        with self._lock:
            found = list(own.variants.values()) if own else []
        view = self._view(entry)
        return found if view is None else [*found, view]

    def variant(self, entry: ModelEntry) -> Variant | None:
        """That of this very name, if it was asked for since it was loaded."""
        own = self._weights.loaded().get(entry.name)
        return self._view(entry) or (own.variants.get(None) if own else None)

    def drop(self, entry: ModelEntry) -> None:
        """Let go of the weights under this name with all views of them, or of this view alone.

        What has begun to run keeps what it needs. Raises ``WeightsLoading``.
        """
        self._weights.drop(entry.name)
        if self._view(entry) is not None:
            with self._lock:
                self._weights.loaded()[entry.base].variants.pop(entry.keep, None)

    def _view(self, entry: ModelEntry) -> Variant | None:
        """The view that this entry is of loaded weights, if it was made."""
        parent = self._weights.loaded().get(entry.base)
        is_view = parent is not None and entry.is_view and entry.keep is not None
        return parent.variants.get(entry.keep) if parent and is_view else None

    def _served(self, entry: ModelEntry, weights: Weights) -> ServedModel:
        keep = entry.keep if entry.is_view else None
        of_order = entry.order.parent_fingerprint if entry.order and keep else None
        if of_order not in (None, weights.fingerprint):
            raise ModelReplaced(
                f"{entry.base!r} was replaced after it had been loaded, and {entry.name!r} is of "
                f"the new one: unload it by POST /models/{entry.base}/unload, and try again"
            )
        with self._lock:
            # Names that mean the same blocks share one variant, and so one batch.
            variant = weights.variants.get(keep)
            if variant is None:
                variant = make_variant(entry.name, entry.base, weights.loaded.model, keep)
                weights.variants[keep] = variant
        return ServedModel(entry, variant, weights.loaded.tokenizer)

    def _source(self, entry: ModelEntry) -> Source:
        """Of the weights that the entry needs: its dense parent's, or its own."""
        if entry.error is not None:
            raise NotAModel(entry.error)
        if entry.is_view:
            return Source(
                entry.base,
                partial(self._dense_bytes, entry.base),
                partial(self._models.load, entry.base, device=self._device),
            )
        if entry.order is None or not entry.is_whole_checkpoint:
            raise UnknownModel(
                f"{entry.name!r} needs its dense parent {entry.base!r}, and the models directory "
                f"has none of that name, or another: without it only a job's full depth can be "
                f"served"
            )
        name = entry.order.name
        return Source(
            name,
            lambda: self._checkpoints.manifest(name).weight_bytes,
            partial(self._checkpoints.open, name, device=self._device),
        )

    def _dense_bytes(self, name: str) -> int:
        info = self._models.inspect(name)
        dtype: torch.dtype = getattr(torch, info.dtype)
        return weight_sizes(info.path).num_parameters(info.num_blocks) * dtype.itemsize
