"""The response bodies of jobs, estimates and webhook deliveries."""

from dataclasses import asdict
from typing import Literal

from fastapi import Request

from app.api.formats.models import domain_views, repair_view
from app.api.schemas.bodies import view_of
from app.api.schemas.events import SinkView, WebhookDeliveryView
from app.api.schemas.heal import HealEstimateView, HealProgressView
from app.api.schemas.jobs import ConditionView, EstimateView, PruneJobView
from app.api.submission import Estimate
from app.models.catalog import Catalog
from pruning.jobs.estimate import HealEstimate
from pruning.jobs.job import Job, JobStatus, StopRequest
from pruning.jobs.outbox import DeliveryAttempt
from pruning.plural import counted

_RUNNING = (JobStatus.RUNNING, JobStatus.CANCELLING)
_BELOW_A_JOB = (
    *("cancel", "pause", "resume", "retry"),
    *("events", "checkpoints", "webhook_deliveries"),
)
_REASONS = {None: "Started", StopRequest.PAUSE: "Pausing", StopRequest.CANCEL: "Cancelling"}


def job_view(job: Job, request: Request, catalog: Catalog) -> PruneJobView:
    return job_view_at(request.url_for("get_prune_job", job_id=job.id).path, job, catalog)


def job_view_at(path: str, job: Job, catalog: Catalog) -> PruneJobView:
    """Return the view for a job with this URL path, where there is no request."""
    published = catalog.published(job.pruned_model) if job.pruned_model else None
    below = {name: f"{path}/{name.replace('_', '-')}" for name in _BELOW_A_JOB}
    return view_of(
        PruneJobView,
        job,
        tenant=job.owner,
        heal_progress=_heal_progress(job),
        repair=repair_view(published) if published else None,
        predicted_speedup=published.predicted_speedup if published else None,
        measured_speedup=catalog.measured_speedup(published) if published else None,
        domains=domain_views(published) if published else [],
        tasks=catalog.tasks(published) if published else None,
        conditions=_conditions(job),
        sinks=[SinkView(sink=sink.value, **asdict(state)) for sink, state in job.sinks.items()],
        spec=job.spec.to_dict(),
        urls={"self": path, **below},
    )


def _heal_progress(job: Job) -> HealProgressView | None:
    if job.heal_progress is None:
        return None
    training = "control" if job.heal_progress.training == "control" else "healed"
    return view_of(HealProgressView, job.heal_progress, training=training)


def estimate_view(estimate: Estimate) -> EstimateView:
    checked, healing = estimate.checked, estimate.heal
    needed = checked.footprint
    return view_of(
        EstimateView,
        needed,
        model=checked.spec.model,
        evaluations_total=checked.num_evaluations,
        search_of=estimate.search_of,
        is_upper_bound=checked.spec.is_depth_open,
        estimated_s=estimate.duration.seconds,
        estimated_from=estimate.duration.jobs,
        free_disk_bytes=checked.free_disk_bytes,
        heal=None if healing is None else heal_estimate_view(healing, checked.healed_bytes),
    )


def heal_estimate_view(healing: HealEstimate, checkpoint_bytes: int) -> HealEstimateView:
    return view_of(
        HealEstimateView,
        healing,
        estimated_s=healing.seconds,
        estimated_from=healing.jobs,
        checkpoint_bytes=checkpoint_bytes,
    )


def delivery_view(attempt: DeliveryAttempt) -> WebhookDeliveryView:
    return view_of(WebhookDeliveryView, attempt, id=attempt.message_id, attempt=attempt.number)


def _conditions(job: Job) -> list[ConditionView]:
    """Derive the conditions from the times of creation, last start and last change."""
    conditions = [_queued(job)]
    if job.attempt:
        conditions.append(_running(job))
    if job.status is JobStatus.PAUSED:
        message = "the job is paused until it is resumed; its GPU is free for other jobs"
        conditions.append(_condition("Paused", job.status_since, "Requested", message))
    if job.pause_requested_at is not None:
        message = "the worker will stop after the current evaluation"
        since = job.pause_requested_at
        conditions.append(_condition("Paused", since, "Requested", message, status="False"))
    if job.status is JobStatus.SUCCEEDED:
        message = f"published {job.pruned_model}"
        conditions.append(_condition("Succeeded", job.finished_at, "Published", message))
    if job.status is JobStatus.FAILED:
        reason, message = (job.error.code, job.error.message) if job.error else ("Failed", "")
        conditions.append(_condition("Failed", job.finished_at, reason, message))
    if job.status is JobStatus.CANCELLED:
        conditions.append(
            _condition("Cancelled", job.finished_at, "Requested", "cancelled on request")
        )
    return conditions


def _queued(job: Job) -> ConditionView:
    if job.status is not JobStatus.QUEUED:
        since = job.status_since if job.started_at is None else job.started_at
        message = "a worker has started the job" if job.attempt else "no worker has started the job"
        return _condition("Queued", since, "Left", message, status="False")
    if job.held_at is not None:
        message = f"the tenant already runs {counted(job.held_at, 'job')}, the maximum of its quota"
        return _condition("Queued", job.status_since, "Quota", message)
    if job.status_since != job.created_at:
        return _condition("Queued", job.status_since, "Returned", "waiting for a worker again")
    return _condition("Queued", job.created_at, "Submitted", "waiting for a worker")


def _running(job: Job) -> ConditionView:
    if job.status in _RUNNING:
        message = f"attempt {job.attempt} by {job.worker}"
        return _condition("Running", job.started_at, _REASONS[job.stop_request], message)
    message = f"the status is {job.status}"
    return _condition("Running", job.status_since, "Left", message, status="False")


def _condition(
    type_: Literal["Queued", "Running", "Paused", "Succeeded", "Failed", "Cancelled"],
    since: float | None,
    reason: str,
    message: str,
    *,
    status: Literal["True", "False"] = "True",
) -> ConditionView:
    return ConditionView(
        type=type_, status=status, last_transition_at=since, reason=reason, message=message
    )
