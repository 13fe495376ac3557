"""Submitting a pruning job: check the request, record the job, queue it.

A request that can never succeed is refused here, not hours later by a worker.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from app.api.schemas.events import WebhookBody
from app.api.schemas.jobs import HealJobBody, PruneJobBody
from app.api.texts_folder import TextsFolder, check_lengths
from app.auth.keys import caller, seen_tenant
from app.auth.quotas import NO_QUOTA, Quota
from app.webhooks.target import AddressRule, InvalidWebhook, WebhooksOff, check
from pruning.checkpoints.store import (
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
)
from pruning.healing.record import NotHealable, check_healable
from pruning.jobs.creation import Conditions, QueueFull
from pruning.jobs.estimate import (
    DiskTooSmall,
    Duration,
    Footprint,
    duration,
    footprint,
    is_upper_bound,
    wait_s,
)
from pruning.jobs.heal_estimate import HealEstimate, heal_estimate
from pruning.jobs.idempotency import (
    Claim,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    IdempotencyKeys,
)
from pruning.jobs.job import Job, JobNotFound, JobStatus, Webhook
from pruning.jobs.queue import PruneQueue
from pruning.jobs.quota import CheckpointQuotaReached, JobQuota, QueueQuotaReached
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.models.architectures import (
    ARCHITECTURES,
    UnknownArchitecture,
    UnsupportedConfig,
    check_quantizable,
)
from pruning.models.safetensors_headers import WeightSizes, weight_sizes
from pruning.models.store import ModelNotFound, ModelStore, NotAModel, read_config
from pruning.repair.order import methods_for
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec

RAISES = (
    ModelNotFound,
    NotAModel,
    UnknownArchitecture,
    UnsupportedConfig,
    InvalidSpec,
    TooManyRemovals,
    TargetUnreachable,
    DiskTooSmall,
    InvalidWebhook,
    WebhooksOff,
    IdempotencyKeyReused,
    IdempotencyInFlight,
    JobNotFound,  # the job of the idempotency key was deleted
    QueueFull,
    QueueQuotaReached,
    CheckpointQuotaReached,
    JobStoreUnavailable,
)

HEAL_RAISES = (*RAISES, CheckpointNotFound, CheckpointCorrupt, NotHealable)

_NUM_EARLIER_JOBS = 100  # the newest jobs that an estimate uses
_REFRESH_S = 2.0  # that a submission waits for a list of the object store


@dataclass(frozen=True)
class Submitted:
    """The job as it was when it was created, by this request or an earlier one with its key."""

    job: Job
    is_replayed: bool


@dataclass(frozen=True)
class Estimate:
    """What a job would need."""

    model: str
    num_evaluations: int
    is_upper_bound: bool
    duration: Duration
    footprint: Footprint
    heal: HealEstimate | None  # None if it heals nothing
    free_disk_bytes: int


@dataclass(frozen=True)
class HealingEstimate:
    """What a job that only heals would need."""

    heal: HealEstimate
    checkpoint_bytes: int  # of the weights of the pruned model, which the healed one has as well


@dataclass(frozen=True)
class _Checked:
    spec: PruneSpec
    webhook: Webhook | None
    num_evaluations: int
    num_blocks: int
    sizes: WeightSizes
    footprint: Footprint
    free_disk_bytes: int


@dataclass(frozen=True)
class _Asked:
    """What a request asks for, after its checks."""

    spec: PruneSpec
    webhook: Webhook | None
    checkpoint_bytes: int  # that the job writes at most
    source: str | None = None  # the checkpoint to heal


class JobSubmission:
    """Turns request bodies into queued jobs, or into estimates of what such jobs would need.

    The folder of ``checkpoints`` is where a pruned model has to fit. ``webhook_rule`` says which
    addresses webhooks may go to; None refuses webhooks. ``default_quota`` is that of tenants
    without their own.
    """

    def __init__(
        self,
        jobs: JobStore,
        queue: PruneQueue,
        idempotency: IdempotencyKeys,
        models: ModelStore,
        texts: TextsFolder,
        *,
        checkpoints: CheckpointStore,
        max_queued: int,
        webhook_rule: AddressRule | None,
        default_quota: Quota = NO_QUOTA,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._idempotency = idempotency
        self._models = models
        self._texts = texts
        self._checkpoints = checkpoints
        self._max_queued = max_queued
        self._webhook_rule = webhook_rule
        self._default_quota = default_quota

    def submit(self, body: PruneJobBody, key: str | None) -> Submitted:
        """Create a job and queue it, once per idempotency ``key``. Raises ``RAISES``.

        A refused request leaves nothing behind, and its key stays free.
        """

        def asked() -> _Asked:
            checked = self._checked(body)
            return _Asked(checked.spec, checked.webhook, _checkpoint_bytes(checked))

        return self._submitted(body, key, asked)

    def submit_healing(self, body: HealJobBody, key: str | None) -> Submitted:
        """As ``submit``, for a job that heals a published checkpoint. Raises ``HEAL_RAISES``."""
        return self._submitted(body, key, lambda: self._healing(body)[0])

    def estimate_healing(self, body: HealJobBody) -> HealingEstimate:
        """Say what the job would need, and create nothing. Raises as ``submit_healing`` does."""
        return self._healing(body, self._succeeded)[1]

    def _healing(
        self, body: HealJobBody, succeeded: Callable[[], Sequence[Job]] = tuple
    ) -> tuple["_Asked", HealingEstimate]:
        """The job, and what it would need by the pace of those that have ``succeeded``."""
        manifest = self._checkpoints.to_heal(body.model, seen_tenant())
        check_healable(manifest.name, manifest.healing)
        info = self._models.inspect(manifest.parent)
        heal = Heal.from_dict(body.heal.model_dump())
        spec = replace(PruneSpec.from_dict(manifest.spec), model=manifest.parent, heal=heal)
        free_bytes = shutil.disk_usage(_existing(self._checkpoints.root)).free
        if manifest.weight_bytes > free_bytes:
            raise DiskTooSmall(manifest.weight_bytes, free_bytes)
        webhook = None if body.webhook is None else self._webhook(body.webhook)
        sizes = weight_sizes(info.path, ARCHITECTURES[info.model_type].writes.refit)
        found = heal_estimate(spec, info.num_blocks, sizes, succeeded())
        assert found is not None
        needed_bytes = manifest.weight_bytes + found.adapter_bytes
        asked = _Asked(spec, webhook, needed_bytes, manifest.name)
        return asked, HealingEstimate(found, manifest.weight_bytes)

    def _submitted(
        self, body: PruneJobBody | HealJobBody, key: str | None, check: Callable[[], "_Asked"]
    ) -> Submitted:
        claim = None if key is None else self._idempotency.claim(_scoped(key), _fingerprint(body))
        if isinstance(claim, str):
            return Submitted(_as_created(self._jobs.get(claim)), is_replayed=True)
        with self._released_on_error(claim):
            asked = check()
            conditions = self._conditions(claim, asked.checkpoint_bytes)
            given = (body.metadata, conditions, body.priority, asked.webhook, asked.source)
            try:
                job = self._jobs.create(asked.spec, *given)
            except (QueueFull, QueueQuotaReached) as full:
                full.retry_after_s = self._wait_s()
                raise
        self._queue.enqueue(job.id)
        return Submitted(job, is_replayed=False)

    def _conditions(self, claim: Claim | None, checkpoint_bytes: int) -> Conditions:
        """Those of the caller's tenant, which the jobs of admins count towards as well."""
        key = caller.get()
        if key is None:
            return Conditions(self._max_queued, claim, checkpoint_bytes=checkpoint_bytes)
        quota = key.quota.over(self._default_quota)
        of_tenant = JobQuota(quota.queued_jobs or 0, quota.checkpoint_bytes or 0)
        if quota.checkpoint_bytes:
            pending = self._jobs.pending_ids()
            # it may have what was pending a moment ago; if it is away, what it had counts
            self._checkpoints.refresh_within(_REFRESH_S)
            published_bytes = self._checkpoints.num_bytes_of(key.owner, but_of_jobs=pending)
            of_tenant = replace(of_tenant, published_bytes=published_bytes, pending_jobs=pending)
        return Conditions(self._max_queued, claim, key.owner, of_tenant, checkpoint_bytes)

    def estimate(self, body: PruneJobBody) -> Estimate:
        """Say what the job would need, and create nothing. Raises as ``submit`` does."""
        checked = self._checked(body)
        spec = checked.spec
        succeeded = self._succeeded()
        return Estimate(
            model=spec.model,
            num_evaluations=checked.num_evaluations,
            is_upper_bound=is_upper_bound(spec),
            duration=duration(spec, checked.num_evaluations, succeeded),
            footprint=checked.footprint,
            heal=heal_estimate(spec, checked.num_blocks, checked.sizes, succeeded),
            free_disk_bytes=checked.free_disk_bytes,
        )

    @contextmanager
    def _released_on_error(self, claim: Claim | None) -> Iterator[None]:
        try:
            yield
        except Exception:
            if claim is not None:
                with suppress(JobStoreUnavailable):  # the claim then expires
                    self._idempotency.release(claim)
            raise

    def _succeeded(self) -> Sequence[Job]:
        """Those that the client may see: estimates name them."""
        owner = seen_tenant()
        return self._jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.SUCCEEDED, owner=owner).jobs

    def _wait_s(self) -> float:
        running = self._jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.RUNNING).jobs
        succeeded = self._jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.SUCCEEDED).jobs
        return wait_s(running, succeeded, time.time())

    def _checked(self, body: PruneJobBody) -> _Checked:
        info = self._models.inspect(body.model)
        spec = PruneSpec.from_dict(body.spec_fields()).resolved(self._texts.file)
        check_lengths(spec.calibration)
        if spec.quantize is not None:
            check_quantizable(info.model_type)
        methods_for(spec.repair, read_config(info.path))
        num_evaluations = spec.num_evaluations(info.num_blocks)
        if info.max_positions is not None and spec.calibration.seqlen > info.max_positions:
            raise InvalidSpec(
                "calibration.seqlen",
                f"seqlen={spec.calibration.seqlen} is beyond the {info.max_positions} positions "
                f"of {spec.model}",
            )
        refit = ARCHITECTURES[info.model_type].writes.refit
        sizes = weight_sizes(info.path, refit)
        needed = footprint(spec, info, sizes)
        free_bytes = shutil.disk_usage(_existing(self._checkpoints.root)).free
        least_bytes = needed.least_checkpoint_bytes * (1 if spec.heal is None else 2)
        if least_bytes > free_bytes:
            raise DiskTooSmall(least_bytes, free_bytes)
        webhook = None if body.webhook is None else self._webhook(body.webhook)
        blocks = info.num_blocks
        return _Checked(spec, webhook, num_evaluations, blocks, sizes, needed, free_bytes)

    def _webhook(self, body: WebhookBody) -> Webhook:
        if self._webhook_rule is None:
            raise WebhooksOff
        check(body.url, self._webhook_rule)
        return Webhook(body.url, tuple(dict.fromkeys(body.events)))


def _checkpoint_bytes(checked: _Checked) -> int:
    """What the job writes at most: the pruned model, its repairs, and the healed one."""
    needed = checked.footprint
    healing = heal_estimate(checked.spec, checked.num_blocks, checked.sizes, succeeded=())
    healed_bytes = 0 if healing is None else needed.checkpoint_bytes + healing.adapter_bytes
    return needed.checkpoint_bytes + needed.repair_bytes + healed_bytes


def _scoped(key: str) -> str:
    """Give each client keys of its own. Keys contain no null character."""
    client = caller.get()
    return key if client is None else f"{client.name}\0{key}"


def _fingerprint(body: PruneJobBody | HealJobBody) -> str:
    """Hash the parsed body, so that formatting and omitted defaults make no difference."""
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _as_created(job: Job) -> Job:
    """Return the job as the first response showed it."""
    created = (job.id, job.model, job.spec, JobStatus.QUEUED, job.created_at)
    return Job(
        *created,
        priority=job.priority,
        status_since=job.created_at,
        metadata=job.metadata,
        webhook=job.webhook,
        source=job.source,
        owner=job.owner,
    )


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
