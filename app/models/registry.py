"""Loaded models by name. Dense weights are read once; every variant is a view of them."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from app.engine.autotuning import OFF, Autotuner
from app.engine.cache.caches import CacheTooLarge, CacheTooSmall
from app.engine.cache.paged_cache import CannotCompute
from app.engine.kernels.int8 import int8_model
from app.engine.running.flat_model import merge_layers
from app.engine.variant import Variant, make_variant
from app.models.aliases import InvalidAliasFile
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry, VariantKey
from app.models.tokenizers import tokenizer_in
from app.models.weights import (
    LoadedWeights,
    NoRoomForWeights,
    Weights,
    WeightSource,
    explained,
)
from pruning.checkpoints.healed import HealedModel, files_of_depth, healed_model
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointStore
from pruning.healing.places import ADAPTER_FILE
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.architectures import ARCHITECTURES, CannotQuantize, engine_refusal
from pruning.models.inspection_record import Stamp
from pruning.models.safetensors_headers import WeightSizes, fingerprint, weight_sizes
from pruning.models.store import LoadedModel, ModelStore, NotAModel, pick_device, stamp_of
from pruning.records import sendable
from pruning.repair.record import repair_file
from pruning.storage.cache import NoRoomInCache
from pruning.storage.store import StoreError


class ModelReplaced(RuntimeError):
    """The dense weights in memory are not those that the removal order was found on."""


# what loading a model may raise
LOAD_RAISES = (
    UnknownModel,
    InvalidAliasFile,
    NotAModel,
    CheckpointCorrupt,
    ModelReplaced,
    NoRoomForWeights,
    NoRoomInCache,
    StoreError,
    JobStoreUnavailable,
    CannotCompute,
    CacheTooSmall,
    CacheTooLarge,
)


@dataclass(frozen=True)
class ServedModel:
    """A loaded variant and its tokenizer."""

    entry: ModelEntry
    variant: Variant
    tokenizer: PreTrainedTokenizerBase
    digest: str  # of its weights: equal if and only if they compute the same


class ModelRegistry:
    """Names to variants, which are loaded on first use. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        models: ModelStore,
        checkpoints: CheckpointStore,
        *,
        device: str = "auto",
        max_weight_bytes: int | None = None,
        tuner: Autotuner = OFF,
        prepare: Callable[[Variant], None] = lambda _variant: None,
    ) -> None:
        self.catalog = catalog
        self._models = models
        self._checkpoints = checkpoints
        self._device = device
        self._tuner = tuner
        self._prepare = prepare  # for its first step, before a variant is visible
        self._weights = LoadedWeights(device, max_weight_bytes)
        self._weight_sizes: dict[Path, tuple[Stamp, WeightSizes]] = {}

    @property
    def device(self) -> str:
        """Where models are loaded."""
        return pick_device(self._device)

    def get(self, name: str) -> ServedModel:
        """As ``begin``, but waits for the weights, which may take minutes."""
        return self.begin(self.catalog.resolve(name)).result()

    def begin(self, entry: ModelEntry) -> "Future[ServedModel]":
        """Start to load the variant of this entry, without waiting for its weights.

        It waits for the tensors of a repair, if the dense weights are loaded. The call or the
        future raises ``UnknownModel``, ``NotAModel``, ``CheckpointCorrupt``, ``ModelReplaced`` or
        ``NoRoomForWeights``.
        """
        served: Future[ServedModel] = Future()
        served.set_running_or_notify_cancel()

        def serve(weights: "Future[Weights]") -> None:
            try:
                served.set_result(self._served(entry, weights.result()))
            except BaseException as error:  # noqa: BLE001 - the future raises it
                served.set_exception(explained(entry.name, error))

        self._weights.get(self._source(entry)).add_done_callback(serve)
        return served

    def tokenizer(self, entry: ModelEntry) -> PreTrainedTokenizerBase | None:
        """Without loading the weights of this entry. None unless its dense model is here.

        Raises ``NotAModel`` and ``ModelNotFound``.
        """
        if (known := self._weights.loaded().get(entry.weights_name)) is not None:
            return known.loaded.tokenizer
        if not entry.is_view and not entry.is_foreign:
            return None
        path = self._models.path(entry.base)
        self._models.check_opened(path)
        with suppress(OSError):  # which loading the model will say
            return tokenizer_in(path)
        return None

    def find(self, name: str) -> ModelEntry:
        """As ``Catalog.resolve``, but also finds loaded models whose directory is gone."""
        try:
            return self.catalog.resolve(name)
        except UnknownModel as error:
            if name not in self._weights.loaded():
                raise
            return ModelEntry(name, name, None, None, error=sendable(str(error)))

    def is_loaded(self, entry: ModelEntry) -> bool:
        """Whether the next request runs without loading anything."""
        if entry.is_view and entry.keep is not None:
            return self._view(entry) is not None
        return entry.name in self._weights.loaded()

    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of loaded weights by name: of models, and of the own tensors of their variants."""
        sizes = Counter(self._weights.sizes())
        sizes.update(
            {each.name: each.own_bytes for each in self._weights.variants() if each.own_bytes}
        )
        return sizes

    def bytes_of(self, entry: ModelEntry) -> int:
        """Bytes of loaded weights that this name has for itself; 0 for an unrepaired view.

        What all healed depths of a checkpoint share counts for its own name.
        """
        view = self._view(entry)
        return self._weights.sizes().get(entry.name, 0) + (view.own_bytes if view else 0)

    def loaded_variants(self) -> list[Variant]:
        """All variants that were made of the loaded weights."""
        return self._weights.variants()

    def variants(self, entry: ModelEntry) -> Collection[Variant]:
        """The loaded variants that cannot run after ``drop`` of this entry."""
        loaded = self._weights.variants_of(entry.name)
        view = self._view(entry)
        return loaded if view is None or view in loaded else [*loaded, view]

    def variant(self, entry: ModelEntry) -> Variant | None:
        """The variant of exactly this name, if it was made since its weights were loaded."""
        return self._view(entry) or self._weights.find(entry.name, VariantKey())

    def drop(self, entry: ModelEntry) -> None:
        """Drop the weights of this name with all their views, or only this view.

        Running requests keep their weights in memory. Raises ``WeightsLoading``.
        """
        self._weights.drop(entry.name)
        if self._view(entry) is not None:
            self._weights.drop_variant(entry.weights_name, entry.key)

    def _view(self, entry: ModelEntry) -> Variant | None:
        """The variant of an entry that is a view of loaded weights, if it was made."""
        is_view = entry.is_view and entry.keep is not None
        return self._weights.find(entry.weights_name, entry.key) if is_view else None

    def _served(self, entry: ModelEntry, weights: Weights) -> ServedModel:
        expected = entry.order.parent_fingerprint if entry.order and entry.key.keep else None
        if expected not in (None, weights.fingerprint):
            raise ModelReplaced(
                f"{entry.base!r} was replaced after it was loaded, and {entry.name!r} belongs "
                f"to the new model: POST /models/{weights.name}/unload, then try again"
            )
        self._fetch_repair(entry)
        # Names of the same blocks and repair share one variant, and therefore one batch.
        make = partial(self._made, entry, weights.loaded)
        variant = self._weights.variant(weights, entry, make)
        digest = sha256(f"{weights.fingerprint} {entry.key} {entry.is_int8}".encode()).hexdigest()
        return ServedModel(entry, variant, weights.loaded.tokenizer, digest)

    def _fetch_repair(self, entry: ModelEntry) -> None:
        """Wait for the store here, where others do not wait for this one."""
        if entry.order is None or entry.view_repair is None or self._view(entry) is not None:
            return
        self._fetch(entry.order.name, self._files_of(entry))

    def _files_of(self, entry: ModelEntry) -> Collection[str] | None:
        """The files of its checkpoint that a view is made of; None for all."""
        assert entry.order is not None
        if entry.shares_healed_blocks:
            manifest = self._checkpoints.manifest(entry.order.name)
            return files_of_depth(manifest, entry.num_removed)
        return None if entry.order.is_healed else [repair_file(entry.num_removed)]

    def _made(self, entry: ModelEntry, loaded: LoadedModel) -> Variant:
        """Raises ``CheckpointCorrupt`` if its repair differs from the manifest."""
        model, repaired = loaded.model, None
        if entry.order is not None and isinstance(loaded, HealedModel):
            with self._checkpoints.held(entry.order.name, self._files_of(entry)) as path:
                model, repaired = loaded.depth(path, entry.num_removed)
        elif entry.order is not None and entry.view_repair is not None:
            repaired = self._checkpoints.repair(entry.order.name, entry.num_removed)
        variant = make_variant(entry.name, entry.base, model, entry.key.keep, repaired)
        self._prepare(variant)
        return variant

    def _source(self, entry: ModelEntry) -> WeightSource:
        """The weights that the entry runs on: those of its dense model or its own, or int8 ones."""
        plain = self._plain_source(entry)
        if not entry.is_int8:
            return plain
        return WeightSource(
            entry.weights_name,
            partial(self._int8_bytes, entry, plain),
            partial(self._made_int8, plain),
        )

    def _made_int8(self, plain: WeightSource) -> LoadedModel:
        """The int8 form of these weights. It shares what is not in blocks if they are loaded.

        Otherwise they are read, and are gone afterwards. Raises ``NotAModel``.
        """
        loaded = self._loaded_or_read(plain)
        try:
            return replace(loaded, model=int8_model(loaded.model, self._tuner))
        except CannotQuantize as error:
            raise NotAModel(str(error)) from error

    def _loaded_or_read(self, plain: WeightSource) -> LoadedModel:
        known = self._weights.loaded().get(plain.name)
        is_current = known is not None and known.fingerprint == fingerprint(known.loaded.path)
        return known.loaded if known is not None and is_current else plain.read()

    def _made_healed(self, name: str, dense: WeightSource) -> LoadedModel:
        """The dense model with the blocks that all healed depths of a checkpoint share."""
        loaded = self._loaded_or_read(dense)
        with self._checkpoints.held(name, [ADAPTER_FILE]) as path:
            healed = healed_model(path, loaded)
        merge_layers(healed.model)
        return healed

    def _int8_bytes(self, entry: ModelEntry, plain: WeightSource) -> int:
        """What is needed while they are made: the plain weights as well, unless they are loaded."""
        # of all blocks, whichever of them this entry keeps
        whole = replace(entry, num_removed=0) if entry.is_view else entry
        is_loaded = plain.name in self._weights.loaded()
        plain.fetch()
        return (self.int8_bytes(whole) or 0) + (0 if is_loaded else plain.num_bytes())

    def int8_bytes(self, entry: ModelEntry) -> int | None:
        """The bytes of the int8 form of an entry in memory, if nothing else of it is there.

        None if it cannot have one, or if its files are still in the object store. Raises
        ``NotAModel`` or ``CheckpointCorrupt``.
        """
        info = entry.info
        if entry.error is not None or entry.external is not None or entry.dtype is None:
            return None
        if entry.repair is not None and entry.repair.is_healed:
            return None
        if info is not None and not ARCHITECTURES[info.model_type].is_linear:
            return None
        is_view = entry.is_view and info is not None
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if info and is_view:
            num_removed = info.num_blocks - entry.num_blocks
            sizes = self._sizes(info.path)
            return sizes.int8_bytes(info.num_blocks, dtype.itemsize, num_removed)
        if not self._checkpoints.is_here(entry.plain_weights_name):
            return None
        with self._checkpoints.held(entry.plain_weights_name) as path:
            return self._sizes(path).int8_bytes(entry.num_blocks, dtype.itemsize, 0)

    def _sizes(self, path: Path) -> WeightSizes:
        """Read again only after the files have changed."""
        stamp = stamp_of(path)
        known = self._weight_sizes.get(path)
        if known is None or known[0] != stamp:
            known = self._weight_sizes[path] = stamp, weight_sizes(path)
        return known[1]

    def _plain_source(self, entry: ModelEntry) -> WeightSource:
        """The weights on disk."""
        if entry.error is not None:
            raise NotAModel(entry.error)
        if entry.order is not None and entry.shares_healed_blocks:
            name, shared_bytes = entry.order.name, entry.order.shared_bytes or 0
            dense = self._dense_source(entry.base)
            return WeightSource(
                name,
                lambda: shared_bytes,
                partial(self._made_healed, name, dense),
                partial(self._fetch_adapter, name, dense),
            )
        if entry.is_view:
            return self._dense_source(entry.base)
        if entry.order is None or not entry.is_whole_checkpoint:
            raise UnknownModel(
                f"{entry.name!r} needs its dense model {entry.base!r}, which was replaced or is "
                "missing from the models directory; without it, only the full depth of a job "
                "can be served"
            )
        name = entry.order.name
        return WeightSource(
            name,
            lambda: self._checkpoints.manifest(name).weight_bytes,
            partial(self._merged, partial(self._checkpoints.open, name, device=self._device)),
            partial(self._fetch, name),
        )

    def _merged(self, read: Callable[[], LoadedModel]) -> LoadedModel:
        """A model whose layers are merged before anything else uses them."""
        loaded = read()
        if (refusal := engine_refusal(loaded.model.config.model_type)) is not None:
            raise NotAModel(refusal)
        merge_layers(loaded.model)
        return loaded

    def _dense_source(self, name: str) -> WeightSource:
        return WeightSource(
            name,
            partial(self._dense_bytes, name),
            partial(self._merged, partial(self._models.load, name, device=self._device)),
        )

    def _fetch(self, name: str, files: Collection[str] | None = None) -> None:
        """Fetch these files of a checkpoint that is in the object store; None: all of them."""
        with self._checkpoints.held(name, files):
            pass

    def _fetch_adapter(self, name: str, dense: WeightSource) -> None:
        """Wait for the dense weights as well, which the healed blocks are made of."""
        self._weights.get(dense).result()
        self._fetch(name, [ADAPTER_FILE])

    def _dense_bytes(self, name: str) -> int:
        info = self._models.inspect(name)
        dtype: torch.dtype = getattr(torch, info.dtype)
        return weight_sizes(info.path).num_parameters(info.num_blocks) * dtype.itemsize
