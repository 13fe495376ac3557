"""The catalog: all models that can be served, and their names.

Dense models and published checkpoints are read from their directories. The prefixes that a running
job has found are served as well; their removal orders come from the job store until the job has
published them. Reads configs and manifests, never weights.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.models.aliases import Aliases, AliasTaken, InvalidAlias
from app.models.dense import DenseModels
from app.models.entry import ModelEntry, RemovalOrder
from app.models.external import ExternalModel
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups, main_of
from app.models.published import PublishedOrders
from pruning.checkpoints.store import CheckpointStore
from pruning.evaluation.quality import DomainQuality, Interval
from pruning.evaluation.task_shares import TaskShares
from pruning.jobs.job import Job, JobNotFound, JobStatus
from pruning.models.architectures import (
    CannotQuantize,
    UnknownArchitecture,
    UnsupportedConfig,
    check_quantizable,
)
from pruning.models.names import VariantName, split_depth, split_int8, split_raw
from pruning.models.store import ModelStore, NotAModel
from pruning.records import sendable

if TYPE_CHECKING:  # redis takes a sixth of a second to import
    from pruning.jobs.store import JobStore

logger = logging.getLogger(__name__)

MAX_LISTED_JOBS = 100  # of each status, whose unpublished prefixes are listed


class UnknownModel(LookupError):
    """No model, checkpoint or prefix has this name."""


class Catalog:
    """Names to model entries.

    Every call reads the directories again, so that new checkpoints appear at once. Without
    ``jobs``, only published checkpoints are known. An external model hides others of its name, and
    every model an alias. ``tenant`` returns the tenant that asks, or None if all may be seen: to
    it, removal orders of other tenants do not exist, and ``NAME@-k`` means the newest of the rest.
    """

    def __init__(
        self,
        models: ModelStore,
        checkpoints: CheckpointStore,
        jobs: "JobStore | None" = None,
        external: Sequence[ExternalModel] = (),
        aliases: Aliases | None = None,
        speedups: MeasuredSpeedups | None = None,
        qualities: MeasuredQualities | None = None,
        tenant: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._jobs = jobs
        self._external = {model.name: model for model in external}
        self._aliases = aliases
        self._speedups = speedups
        self._qualities = qualities
        self._tenant = tenant
        self._dense_models = DenseModels(models)
        self._published = PublishedOrders(checkpoints)

    def aliases_of(self, name: str) -> list[str]:
        """The aliases of a model, of a checkpoint or of their variants."""
        return [] if self._aliases is None else self._aliases.names_of(name)

    def directory(self, name: str) -> Path:
        """Of a dense model. Raises ``ModelNotFound``."""
        return self._models.path(name)

    def dense_names(self) -> list[str]:
        return self._models.names()

    def resolve(self, name: str) -> ModelEntry:
        """The entry of a name.

        Raises ``UnknownModel``, whose message lists the dense models, and
        ``JobStoreUnavailable``.
        """
        plain, is_int8 = split_int8(name)
        if not is_int8 or name in self._external:
            return self._resolve_raw(name)
        entry = self._resolve_raw(plain)
        return entry if entry.is_int8 else self._int8(entry)

    def _int8(self, entry: ModelEntry) -> ModelEntry:
        """The entry with int8 weights. Raises ``UnknownModel`` if it cannot have them."""
        name = entry.int8.name[:128]
        if entry.external is not None:
            raise UnknownModel(
                f"no model named {name!r}: {entry.name!r} runs on an external server, which has "
                "only its own weights: remove +int8"
            )
        if entry.order is not None and entry.order.is_healed and not entry.is_raw:
            raise UnknownModel(
                f"no model named {name!r}: healed models are not available with int8 weights, "
                "because all their blocks have their own weights: remove +int8"
            )
        if entry.info is not None:
            try:
                check_quantizable(entry.info.model_type)
            except CannotQuantize as error:
                raise UnknownModel(f"no model named {name!r}: {error}") from error
        return entry.int8

    def _resolve_raw(self, name: str) -> ModelEntry:
        """The entry of a name without ``+int8``."""
        plain, is_raw = split_raw(name)
        entry = self._resolve(plain)
        if not is_raw or entry.is_raw:
            return entry
        if not entry.is_pruned or entry.external is not None:
            kind = "a model on an external server" if entry.external else "a dense model"
            raise UnknownModel(
                f"no model named {name[:128]!r}: +raw means a pruned variant without repair, "
                f"but {plain!r} is {kind}: remove +raw"
            )
        return entry.raw

    def _resolve(self, name: str) -> ModelEntry:
        """The entry of a name without ``+raw`` and ``+int8``."""
        if name in self._external:
            return self._external_entry(self._external[name])
        if name in self.dense_names():
            return self._dense_entry(name, self._newest().get(name))
        if published := self.published(name):
            return published
        order, depth = self._order_and_depth(name)
        if order is None and (target := self._alias_target(name)) is not None:
            return self._target_entry(name, target)
        if order is None:
            raise self._unknown(name)
        if order.is_healed and not order.is_elastic:
            raise UnknownModel(
                f"{name!r}: only the deepest model of this checkpoint is healed: use {order.name!r}"
            )
        if not 1 <= depth <= order.depth:
            raise UnknownModel(
                f"{name!r}: the deepest model of this removal order has {order.depth} removed "
                "blocks"
            )
        info = self._dense_models.matching(order)
        return ModelEntry.of_model(name, order.parent, info, order, depth)

    def _unknown(self, name: str) -> UnknownModel:
        dense = ", ".join(self.dense_names()) or "none, because the models directory is empty"
        return UnknownModel(
            f"no model named {name[:128]!r}: `sleb models` or GET /models lists all models; the "
            f"dense ones are {dense}"
        )

    def _sees(self, tenant: str | None) -> bool:
        """Whether what belongs to that tenant exists for the one that asks."""
        return tenant is None or self._tenant() in (None, tenant)

    def measured_speedups(self, entry: ModelEntry) -> Mapping[str, MeasuredSpeedup]:
        """Of this depth with these weights, by load; none of a plain dense model."""
        if self._speedups is None or not (entry.is_pruned or entry.is_int8) or entry.external:
            return {}
        what = Measurand(entry.num_removed, entry.is_int8)
        weights = entry.order.parent_fingerprint if entry.order else None
        return self._speedups.by_load(entry.base, what, weights)

    def measured_speedup(self, entry: ModelEntry) -> MeasuredSpeedup | None:
        """Of one stream if it was measured, else of a benchmark or a comparison."""
        return main_of(self.measured_speedups(entry))

    def ratios(self, entry: ModelEntry) -> Mapping[str, Interval]:
        """The perplexity divided by the dense one, by domain; of int8 weights as measured."""
        if entry.is_int8 and self._qualities is not None:
            weights = self._dense_models.fingerprint(entry.base)
            return self._qualities.of(entry.base, weights, entry.pinned_name)
        return {domain.domain: domain.ratio(entry.measured_on(domain)) for domain in entry.domains}

    def tasks(self, entry: ModelEntry) -> TaskShares | None:
        """The accuracy beside that of the dense model, by its job and `sleb eval`."""
        if self._qualities is None or entry.info is None:
            return TaskShares.of(entry.tasks)
        weights = self._dense_models.fingerprint(entry.base)
        return self._qualities.tasks(entry.base, weights, entry.pinned_name, entry.tasks)

    def record_qualities(self, entry: ModelEntry, domains: Sequence[DomainQuality]) -> None:
        """Keep the quality of int8 weights. Raises ``OSError``."""
        weights = self._dense_models.fingerprint(entry.base)
        if self._qualities is not None and weights is not None:
            self._qualities.record(entry.base, weights, {entry.pinned_name: domains})

    def record_speedups(self, base: str, measured: Mapping[Measurand, MeasuredSpeedup]) -> None:
        """Keep measured speed-ups. Raises ``OSError``."""
        if self._speedups is not None:
            self._speedups.record(base, measured)

    def aliases(self) -> Mapping[str, str]:
        """The target of each alias that can be used; none if their file is broken."""
        return {} if self._aliases is None else self._aliases.listed()

    def is_alias(self, name: str) -> bool:
        """Whether it is an alias, which may be broken."""
        known = self._aliases
        return known is not None and name in {*known.listed(), *known.broken()}

    def external_name(self, name: str) -> str | None:
        """The external model that a name or an alias means, if it means one."""
        target = name if name in self._external else self.aliases().get(name)
        return target if target in self._external else None

    def set_alias(self, alias: str, target: str) -> ModelEntry:
        """Give the alias to what ``target`` means now, and return its entry.

        Raises as ``resolve``, ``AliasTaken``, ``InvalidAlias`` or ``InvalidAliasFile``.
        """
        assert self._aliases is not None
        entry = self.resolve(target)
        if not entry.is_published:
            raise InvalidAlias(
                f"{target!r} is not published yet and may still change: wait until its job has "
                "succeeded"
            )
        if alias not in self.aliases() and self._is_model(alias):
            raise AliasTaken(f"{alias!r} is the name of a model: choose another alias")
        self._aliases.set(alias, entry.pinned_name)
        return entry

    def remove_alias(self, alias: str) -> None:
        """The target stays. Raises ``UnknownModel`` or ``InvalidAliasFile``."""
        if self._aliases is None or not self._aliases.remove(alias):
            known = ", ".join(self.aliases()) or "none"
            raise UnknownModel(f"no alias {alias[:128]!r}; existing aliases: {known}")

    def entries(self) -> list[ModelEntry]:
        """All models, and the prefixes of the newest orders. What is broken has an ``error``."""
        orders, healed = self._newest(), self._newest(is_healed=True)
        entries = []
        for name in self.dense_names():
            dense = self._dense_entry(name, orders.get(name))
            entries.append(dense)
            if dense.order is not None:
                entries += self._prefix_entries(dense.order, VariantName(name))
            if name in healed:
                entries += self._prefix_entries(healed[name], VariantName(name, is_healed=True))
        entries += [self._whole_entry(order) for order in self._published_orders()]
        if self._tenant() is None:  # whom a broken one belongs to is not known
            entries += [
                ModelEntry(name, VariantName.of_checkpoint(name).model, None, None, error=reason)
                for name, reason in self._published.broken().items()
            ]
        entries = [entry for entry in entries if entry.name not in self._external]
        entries += map(self._external_entry, self._external.values())
        return entries + self._broken_aliases({entry.name for entry in entries})

    def _broken_aliases(self, models: Collection[str]) -> list[ModelEntry]:
        """One entry each, unless a model has its name, which hides it."""
        broken = {} if self._aliases is None else self._aliases.broken()
        return [
            ModelEntry(alias, alias, None, None, error=reason)
            for alias, reason in broken.items()
            if alias not in models and self._tenant() is None
        ]

    def unpublished(self) -> list[ModelEntry]:
        """The prefixes that unfinished jobs have found so far. Raises ``JobStoreUnavailable``."""
        if self._jobs is None:
            return []
        unfinished = [status for status in JobStatus if not status.is_final]
        tenant = self._tenant()
        pages = [self._jobs.list(MAX_LISTED_JOBS, status=one, owner=tenant) for one in unfinished]
        entries: list[ModelEntry] = []
        for job in (job for page in pages for job in page.jobs):
            is_published = self._checkpoints.holds(job.checkpoint_name)
            if not is_published and (order := self._order_of_job(job)) is not None:
                entries += self._prefix_entries(order, VariantName.of_checkpoint(order.name))
        return entries

    def order(self, checkpoint: str) -> RemovalOrder | None:
        """As published, else as its job has found it so far. Raises ``JobStoreUnavailable``."""
        return self._published_order(checkpoint) or self._unpublished_order(checkpoint)

    def published(self, checkpoint: str) -> ModelEntry | None:
        """The entry of a published checkpoint; None if there is none."""
        order = self._published_order(checkpoint)
        return None if order is None else self._whole_entry(order)

    def prefixes(self, order: RemovalOrder) -> list[ModelEntry]:
        """The prefixes that can be served; the whole checkpoint alone without its dense model, or
        if only its full depth was healed."""
        if order.is_healed and not order.is_elastic:
            return [self._whole_entry(order)]
        entries = self._prefix_entries(order, VariantName.of_checkpoint(order.name))
        return [entry for entry in entries if entry.is_view or entry.is_whole_checkpoint]

    def _alias_target(self, name: str) -> str | None:
        """None for what is no alias. Raises ``UnknownModel`` for a broken one, ``InvalidAliasFile``
        for any name if the file is broken: it may be an alias."""
        if self._aliases is None:
            return None
        target = self._aliases.all().get(name)
        if target is None and (reason := self._aliases.broken().get(name)) is not None:
            raise UnknownModel(f"alias {name!r} is invalid: {reason}")
        return target

    def _target_entry(self, alias: str, target: str) -> ModelEntry:
        try:
            return self.resolve(target)
        except UnknownModel as error:
            if self._tenant() is not None:  # it may be another tenant's
                raise self._unknown(alias) from None
            raise UnknownModel(
                f"alias {alias!r} refers to {target!r}, which no longer exists: change its "
                f"target with `sleb models alias {alias} TARGET` or PUT /models/{alias}"
            ) from error

    def _is_model(self, name: str) -> bool:
        try:
            self.resolve(name)
        except UnknownModel:
            return False
        return True

    def _dense_entry(self, name: str, order: RemovalOrder | None) -> ModelEntry:
        try:
            info = self._models.inspect(name)
        except NotAModel as error:
            return ModelEntry(name, name, None, None, error=sendable(str(error)))
        except (UnknownArchitecture, UnsupportedConfig) as error:
            reason = sendable(str(error))
            said = f"{reason}; vLLM may be able to serve it: set SLEB_VLLM to its program"
            return ModelEntry(name, name, None, None, error=said, is_foreign=True)
        is_of_this_model = order is not None and self._dense_models.matching(order) is not None
        return ModelEntry.of_model(name, name, info, order if is_of_this_model else None)

    def _whole_entry(self, order: RemovalOrder) -> ModelEntry:
        info = self._dense_models.matching(order)
        return ModelEntry.of_model(order.name, order.parent, info, order, order.depth)

    def _prefix_entries(self, order: RemovalOrder, name: VariantName) -> list[ModelEntry]:
        """``name`` is that of the checkpoint, or of the dense model for its newest order."""
        info = self._dense_models.matching(order)
        return [
            ModelEntry.of_model(str(replace(name, depth=depth)), order.parent, info, order, depth)
            for depth in range(1, order.depth + 1)
        ]

    def _external_entry(self, model: ExternalModel) -> ModelEntry:
        """With the newest order here that begins with its blocks, which has its perplexity."""
        orders = self._published_orders()
        matching = [one for one in orders if model.begins(one.parent, one.removed_blocks)]
        newest = max(matching, key=lambda order: order.created_at, default=None)
        return ModelEntry.of_external(model, newest)

    def _newest(self, *, is_healed: bool = False) -> dict[str, RemovalOrder]:
        """The newest published order of each dense model, or of those with all depths healed."""
        orders = sorted(self._published_orders(), key=lambda order: order.created_at)
        wanted = (each for each in orders if (each.is_elastic if is_healed else not each.is_healed))
        return {order.parent: order for order in wanted}

    def _published_orders(self) -> list[RemovalOrder]:
        return [order for order in self._published.all() if self._sees(order.tenant)]

    def _published_order(self, name: str) -> RemovalOrder | None:
        order = self._published.get(name)
        return order if order is not None and self._sees(order.tenant) else None

    def _order_and_depth(self, name: str) -> tuple[RemovalOrder | None, int]:
        """Of ``NAME@-k`` the newest order of the model, of ``CHECKPOINT-k`` its own."""
        variant = VariantName.parse(name)
        if variant.job is None and variant.depth is not None and not variant.is_raw:
            newest = self._newest(is_healed=variant.is_healed)
            return newest.get(variant.model), variant.depth
        checkpoint, depth = split_depth(name) or (None, 0)
        return (self.order(checkpoint) if checkpoint else None), depth

    def _unpublished_order(self, name: str) -> RemovalOrder | None:
        checkpoint = VariantName.of_checkpoint(name)
        if self._jobs is None or not checkpoint.job or checkpoint.model not in self.dense_names():
            return None
        try:
            job = self._jobs.get(checkpoint.job)
        except JobNotFound:
            return None
        is_meant = job.checkpoint_name == name and self._sees(job.owner)
        return self._order_of_job(job) if is_meant else None

    def _order_of_job(self, job: Job) -> RemovalOrder | None:
        info = self._dense_models.info(job.model) if job.removed_blocks else None
        return RemovalOrder.of_job(job, info) if info is not None else None
