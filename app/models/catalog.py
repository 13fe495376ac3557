"""What can be served, and under which names. Looks at configs and manifests, never at weights.

``pruning.models.names`` says how names are formed.
Prefixes have their names from the moment the job has found them. Until it has published them, the
job store is asked, and for such names alone.

The dense models that removal orders are of: whether they are here, and are still the same.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from app.models.entry import Entry, RemovalOrder, external_entry, of_checkpoint, of_job
from app.models.external import ExternalModel
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound, CheckpointStore
from pruning.jobs.job import Job, JobNotFound, JobStatus
from pruning.jobs.store import JobStore
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.names import VariantName
from pruning.models.safetensors_files import fingerprint
from pruning.models.store import ModelInfo, ModelNotFound, ModelStore, NotAModel, Stamp, stamp_of

logger = logging.getLogger(__name__)


class Parents:
    """Looks at files anew on every call, but reads them again only when they have changed."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models
        self._fingerprints: dict[Path, tuple[Stamp, str]] = {}
        self._lost: set[str] = set()  # orders whose loss has been told

    def info(self, name: str) -> ModelInfo | None:
        """Of the dense model of this name; None if there is none that can be used."""
        try:
            return self._models.inspect(name)
        except (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig):
            return None

    def of(self, order: RemovalOrder) -> ModelInfo | None:
        """The model that the order was found on; None if it is not here, or was replaced."""
        info = self.info(order.parent)
        if info is None or info.num_blocks != order.num_blocks:
            return None
        if order.parent_fingerprint not in (None, self._fingerprint(info.path)):
            self._tell_lost(order)
            return None
        return info

    def _fingerprint(self, path: Path) -> str | None:
        """None for files that cannot be read."""
        try:
            stamp = stamp_of(path)
            if path not in self._fingerprints or self._fingerprints[path][0] != stamp:
                self._fingerprints[path] = (stamp, fingerprint(path))
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be compared with its removal orders: %s", path, error)
            return None
        return self._fingerprints[path][1]

    def _tell_lost(self, order: RemovalOrder) -> None:
        if order.name not in self._lost:
            self._lost.add(order.name)
            logger.warning(
                "%s is served from its own weights, and its prefixes are not served: the dense "
                "model %s has been replaced since it was pruned",
                order.name,
                order.parent,
            )


_MOST_JOBS = 100  # of each status, that are listed before they have published


class UnknownModel(LookupError):
    """No model, checkpoint or prefix goes by this name."""


class Catalog:
    """Reads the directories anew on every call, so what a worker publishes appears at once.

    Without ``jobs`` there is only what is published. An external model comes before others of its
    name.
    """

    def __init__(
        self,
        models: ModelStore,
        checkpoints: CheckpointStore,
        jobs: JobStore | None = None,
        external: Sequence[ExternalModel] = (),
    ) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._jobs = jobs
        self._external = {model.name: model for model in external}
        self._parents = Parents(models)
        self._published: dict[str, RemovalOrder] = {}

    def dense_names(self) -> list[str]:
        return self._models.names()

    def entries(self) -> list[Entry]:
        """Each dense model with the prefixes of its current order, every checkpoint, and what
        other servers generate for.
        """
        orders = self._current_orders()
        found = []
        for name in self.dense_names():
            dense = self._dense(name, orders.get(name))
            found.append(dense)
            if dense.order is not None:
                found += self._prefixes(dense.order, VariantName(name))
        found += [self._whole(order) for order in self._all_published()]
        found = [entry for entry in found if entry.name not in self._external]
        return found + [self._elsewhere(model) for model in self._external.values()]

    def unpublished(self) -> list[Entry]:
        """The prefixes that jobs which have not ended have found so far.

        Raises ``JobStoreUnavailable``.
        """
        if self._jobs is None:
            return []
        unfinished = [status for status in JobStatus if not status.is_final]
        pages = [self._jobs.list(_MOST_JOBS, status=status) for status in unfinished]
        found: list[Entry] = []
        for job in (job for page in pages for job in page.jobs):
            order = None if self._checkpoints.holds(job.checkpoint_name) else self._of_job(job)
            if order is not None:
                found += self._prefixes(order, VariantName.of_checkpoint(order.name))
        return found

    def order(self, name: str) -> RemovalOrder | None:
        """What the job of ``<model>@<job>`` has published or, until then, found.

        Raises ``JobStoreUnavailable`` if it is not published and the store cannot be asked.
        """
        return self._published_order(name) or self._found_so_far(name)

    def prefixes(self, order: RemovalOrder) -> list[Entry]:
        """Those that can be served: all of them beside the dense parent, without it the whole."""
        entries = self._prefixes(order, VariantName.of_checkpoint(order.name))
        return [entry for entry in entries if entry.is_view or entry.is_whole_checkpoint]

    def resolve(self, name: str) -> Entry:
        """Raises ``UnknownModel``, saying what there is, and what ``order`` raises."""
        if name in self._external:
            return self._elsewhere(self._external[name])
        if name in self.dense_names():
            return self._dense(name, self._current_orders().get(name))
        if order := self._published_order(name):
            return self._whole(order)
        variant = VariantName.parse(name)
        order = None if variant.depth is None else self._order_of_prefix(variant)
        if variant.depth is None or order is None:
            raise UnknownModel(
                f"no model named {name[:128]!r}: GET /models lists them all; dense ones: "
                f"{', '.join(self.dense_names()) or 'none, the models directory is empty'}"
            )
        if not 1 <= variant.depth <= order.depth:
            raise UnknownModel(f"{name!r}: that removal order has depths 1 to {order.depth}")
        return Entry(name, order.parent, self._parents.of(order), order, variant.depth)

    def _order_of_prefix(self, variant: VariantName) -> RemovalOrder | None:
        """The order of its job or, without one, the newest of its model."""
        if variant.job is None:
            return self._current_orders().get(variant.model)
        return self.order(str(replace(variant, depth=None)))

    def _prefixes(self, order: RemovalOrder, name: VariantName) -> list[Entry]:
        """``name`` is that of the order: of a checkpoint, or of the model that it is newest of."""
        info = self._parents.of(order)
        return [
            Entry(str(replace(name, depth=depth)), order.parent, info, order, depth)
            for depth in range(1, order.depth + 1)
        ]

    def _dense(self, name: str, order: RemovalOrder | None) -> Entry:
        try:
            info = self._models.inspect(name)
        except (NotAModel, UnknownArchitecture, UnsupportedConfig) as error:
            return Entry(name, name, None, None, error=str(error))
        is_of_this_model = order is not None and self._parents.of(order) is not None
        return Entry(name, name, info, order if is_of_this_model else None)

    def _whole(self, order: RemovalOrder) -> Entry:
        return Entry(order.name, order.parent, self._parents.of(order), order, order.depth)

    def _elsewhere(self, model: ExternalModel) -> Entry:
        """With the newest order here that its blocks were removed by, and so its perplexity."""
        removed = model.removed_blocks
        known = [
            its
            for its in self._all_published()
            if its.parent == model.parent and removed == its.removed_blocks[: len(removed)] != ()
        ]
        return external_entry(model, max(known, key=lambda its: its.created_at, default=None))

    def _current_orders(self) -> dict[str, RemovalOrder]:
        """The newest published removal order of every dense model."""
        by_age = sorted(self._all_published(), key=lambda order: order.created_at)
        return {order.parent: order for order in by_age}

    def _all_published(self) -> list[RemovalOrder]:
        found = (self._published_order(name) for name in self._checkpoints.names())
        return [order for order in found if order is not None]

    def _published_order(self, name: str) -> RemovalOrder | None:
        """Read once: what is published never changes, but may be deleted."""
        if not self._checkpoints.holds(name):
            self._published.pop(name, None)
            return None
        if name not in self._published:
            try:
                self._published[name] = of_checkpoint(self._checkpoints.manifest(name))
            except CheckpointNotFound:
                return None
            except CheckpointCorrupt as error:
                logger.warning("a checkpoint is left out: %s", error)
                return None
        return self._published[name]

    def _found_so_far(self, name: str) -> RemovalOrder | None:
        checkpoint = VariantName.of_checkpoint(name)
        if self._jobs is None or not checkpoint.job or checkpoint.model not in self.dense_names():
            return None
        try:
            job = self._jobs.get(checkpoint.job)
        except JobNotFound:
            return None
        return self._of_job(job) if job.checkpoint_name == name else None

    def _of_job(self, job: Job) -> RemovalOrder | None:
        info = self._parents.info(job.model) if job.removed_blocks else None
        return of_job(job, info) if info is not None else None
