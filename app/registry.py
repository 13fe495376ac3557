"""The models that are loaded. Dense weights are read once; every variant of them is a view."""

from dataclasses import dataclass
from threading import Lock

from transformers import PreTrainedTokenizerBase

from app.catalog import Catalog, Entry, UnknownModel
from app.engine.variants import Variant, make_variant
from pruning.checkpoints import CheckpointStore
from pruning.models import LoadedModel, ModelStore, NotAModel
from pruning.sleb import Blocks


@dataclass(frozen=True)
class ServedModel:
    """A variant ready to generate, with what turns text into its tokens and back."""

    entry: Entry
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
    ) -> None:
        self.catalog = catalog
        self._models = models
        self._checkpoints = checkpoints
        self._device = device
        self._weights: dict[str, LoadedModel] = {}
        self._variants: dict[tuple[str, Blocks | None], Variant] = {}
        self._lock = Lock()

    def get(self, name: str) -> ServedModel:
        """Reads weights if it must, which takes seconds to minutes.

        Raises ``UnknownModel``, ``NotAModel``, ``CheckpointCorrupt`` or ``UnknownArchitecture``.
        """
        entry = self.catalog.resolve(name)
        with self._lock:
            weights_name, keep = self._weights_of(entry)
            loaded = self._weights[weights_name]
            # Names that mean the same blocks share one variant, and so one batch.
            variant = self._variants.get((weights_name, keep))
            if variant is None:
                variant = make_variant(name, entry.base, loaded.model, keep)
                self._variants[weights_name, keep] = variant
        return ServedModel(entry, variant, loaded.tokenizer)

    def is_loaded(self, entry: Entry) -> bool:
        return entry.base in self._weights or entry.name in self._weights

    def weight_bytes(self) -> int:
        """Bytes of all parameters in memory, each tensor counted once."""
        with self._lock:
            models = [loaded.model for loaded in self._weights.values()]
        tensors = {p.data_ptr(): p.nbytes for model in models for p in model.parameters()}
        return sum(tensors.values())

    def _weights_of(self, entry: Entry) -> tuple[str, Blocks | None]:
        """Load what the entry needs; returns under which name, and which blocks to keep of it."""
        if entry.error is not None:
            raise NotAModel(entry.error)
        if entry.is_view:
            if entry.base not in self._weights:
                self._weights[entry.base] = self._models.load(entry.base, device=self._device)
            return entry.base, entry.keep
        if entry.order is None or not entry.is_whole_checkpoint:
            raise UnknownModel(
                f"{entry.name!r} needs its dense parent {entry.base!r}, which is not in the models "
                f"directory: without it only a job's full depth can be served"
            )
        if entry.order.name not in self._weights:
            checkpoint = self._checkpoints.open(entry.order.name, device=self._device)
            self._weights[entry.order.name] = checkpoint
        return entry.order.name, None
