"""Submitting a pruning job: check the request, record the job, queue it.

A request that can never succeed is refused here, not hours later by a worker. One that has ended
without a result is queued again here as well.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from app.api.job_checks import Checked, CheckedHealing, JobChecks
from app.api.schemas.events import WebhookBody
from app.api.schemas.jobs import HealJobBody, PruneJobBody, RetryJobBody
from app.auth.keys import NO_QUOTA, ApiKey, Quota, caller, seen_tenant
from app.webhooks.target import AddressRule, WebhooksOff, check
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.conditions import Conditions, JobQuota, QueueFull, QueueQuotaReached
from pruning.jobs.estimate import Duration, HealEstimate, duration, heal_estimate, wait_s
from pruning.jobs.idempotency import Claim, IdempotencyKeys
from pruning.jobs.job import RETRIED, IllegalTransition, Job, JobStatus, Webhook
from pruning.jobs.queue import PruneQueue
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec

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

    checked: Checked
    duration: Duration
    heal: HealEstimate | None  # None if it heals nothing
    search_of: str | None  # the job whose search it would go on with


@dataclass(frozen=True)
class JobSubmission:
    """Turns request bodies into queued jobs, or into estimates of what such jobs would need.

    ``webhook_rule`` says which addresses webhooks may go to; None refuses webhooks.
    ``default_quota`` is that of tenants without their own.
    """

    jobs: JobStore
    queue: PruneQueue
    idempotency: IdempotencyKeys
    checks: JobChecks
    checkpoints: CheckpointStore
    max_queued: int
    webhook_rule: AddressRule | None
    default_quota: Quota = NO_QUOTA

    def submit(self, body: PruneJobBody | HealJobBody, key: str | None) -> Submitted:
        """Create a job and queue it, once per idempotency ``key``.

        A refused request leaves nothing behind, and its key stays free. Raises ``SUBMIT_RAISES``,
        which ``app.api.errors`` lists, or ``HEAL_RAISES`` for a job that heals a checkpoint.
        """
        claim = None if key is None else self.idempotency.claim(_scoped(key), _fingerprint(body))
        if isinstance(claim, str):
            return Submitted(_as_created(self.jobs.get(claim)), is_replayed=True)
        with self._released_on_error(claim):
            checked, webhook, earlier = self._checked(body)
            conditions = self._conditions(caller.get(), claim, checked.checkpoint_bytes)
            described = (body.metadata, conditions, body.priority, webhook)
            source = checked.source.name if isinstance(checked, CheckedHealing) else None
            search_of = None if earlier is None else earlier.id
            try:
                job = self.jobs.create(checked.spec, *described, source, search_of)
            except (QueueFull, QueueQuotaReached) as full:
                full.retry_after_s = self._wait_s()
                raise
        self.queue.enqueue(job.id)
        return Submitted(job, is_replayed=False)

    def estimate(self, body: PruneJobBody) -> Estimate:
        """Say what the job would need, and create nothing. Raises as ``submit`` does."""
        checked, _, earlier = self._pruning(body)
        spec, succeeded = checked.spec, self._succeeded()
        num_known = 0 if earlier is None else earlier.progress.evaluations_done
        num_left = max(0, checked.num_evaluations - num_known)
        healing = heal_estimate(spec, checked.num_blocks, checked.sizes, succeeded)
        search_of = None if earlier is None else earlier.id
        return Estimate(checked, duration(spec, num_left, succeeded), healing, search_of)

    def estimate_healing(self, body: HealJobBody) -> tuple[HealEstimate, int]:
        """What the job would need, and the bytes of what it publishes at most.

        Creates nothing. Raises ``HEAL_RAISES``.
        """
        checked, *_ = self._healing(body)
        healing = heal_estimate(checked.spec, checked.num_blocks, checked.sizes, self._succeeded())
        assert healing is not None
        return healing, checked.checkpoint_bytes

    def retry(self, job_id: str, body: RetryJobBody) -> Job:
        """Queue a job again that has failed or was cancelled. Raises ``RETRY_RAISES``."""
        job, checked = self._retried(job_id, body)
        key = caller.get()
        # the quota of its tenant counts if that sends the request
        key = key if key is not None and key.owner == job.owner else None
        conditions = self._conditions(key, None, checked.checkpoint_bytes, {job.id})
        retried = self.jobs.retry(job_id, checked.spec, conditions)
        self.queue.enqueue(job_id)
        return retried

    def _retried(self, job_id: str, body: RetryJobBody) -> tuple[Job, Checked | CheckedHealing]:
        job = self.jobs.get(job_id)
        if job.status not in RETRIED:
            raise IllegalTransition(job_id, job.status, "retry")
        spec = body.changed(job.spec, heals_only=job.source is not None)
        if job.source is not None and spec.heal is not None:
            return job, self.checks.healing(job.source, spec.heal)
        return job, self.checks.pruning(spec)

    def _checked(
        self, body: PruneJobBody | HealJobBody
    ) -> tuple[Checked | CheckedHealing, Webhook | None, Job | None]:
        if isinstance(body, HealJobBody):
            return self._healing(body)
        return self._pruning(body)

    def _pruning(self, body: PruneJobBody) -> tuple[Checked, Webhook | None, Job | None]:
        """Check a body. The job is the one whose search it goes on with."""
        checked = self.checks.pruning(PruneSpec.from_dict(body.spec_fields()))
        webhook = self._webhook(body.webhook)
        return checked, webhook, self._same_search(checked.spec) if body.reuse_search else None

    def _healing(self, body: HealJobBody) -> tuple[CheckedHealing, Webhook | None, None]:
        checked = self.checks.healing(body.model, Heal(**body.heal.model_dump()))
        return checked, self._webhook(body.webhook), None

    def _same_search(self, spec: PruneSpec) -> Job | None:
        """The job with the most recorded removals, among those that the client may see."""
        digest, owner = spec.search_digest(), seen_tenant()
        jobs = [
            job
            for job in self.jobs.list(_NUM_EARLIER_JOBS, owner=owner).jobs
            if job.model == spec.model and job.source is None and job.progress.evaluations_done
            if job.spec.search_digest() == digest
        ]
        return max(jobs, key=lambda job: job.progress.evaluations_done, default=None)

    def _conditions(
        self,
        key: ApiKey | None,
        claim: Claim | None,
        checkpoint_bytes: int,
        retried: Collection[str] = (),
    ) -> Conditions:
        """Those of the key's tenant, which the jobs of admins count towards as well."""
        if key is None:
            return Conditions(self.max_queued, claim, checkpoint_bytes=checkpoint_bytes)
        quota = key.quota.over(self.default_quota)
        of_tenant = JobQuota(quota.queued_jobs or 0, quota.checkpoint_bytes or 0)
        if quota.checkpoint_bytes:
            pending = self.jobs.pending_ids().union(retried)
            # it may have what was pending a moment ago; if it is away, what it had counts
            self.checkpoints.refresh_within(_REFRESH_S)
            published_bytes = self.checkpoints.num_bytes_of(key.owner, but_of_jobs=pending)
            of_tenant = replace(of_tenant, published_bytes=published_bytes, pending_jobs=pending)
        return Conditions(self.max_queued, claim, key.owner, of_tenant, checkpoint_bytes)

    @contextmanager
    def _released_on_error(self, claim: Claim | None) -> Iterator[None]:
        try:
            yield
        except Exception:
            if claim is not None:
                with suppress(JobStoreUnavailable):  # the claim then expires
                    self.idempotency.release(claim)
            raise

    def _succeeded(self) -> Sequence[Job]:
        """Those that the client may see: estimates name them."""
        owner = seen_tenant()
        return self.jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.SUCCEEDED, owner=owner).jobs

    def _wait_s(self) -> float:
        running = self.jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.RUNNING).jobs
        succeeded = self.jobs.list(_NUM_EARLIER_JOBS, status=JobStatus.SUCCEEDED).jobs
        return wait_s(running, succeeded, time.time())

    def _webhook(self, body: WebhookBody | None) -> Webhook | None:
        if body is None:
            return None
        if self.webhook_rule is None:
            raise WebhooksOff
        check(body.url, self.webhook_rule)
        return Webhook(body.url, tuple(dict.fromkeys(body.events)))


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
