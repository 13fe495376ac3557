"""Jobs: submit, list, read, pause, resume, cancel and delete them. Workers run them.

Healing jobs are submitted by a route of their own, and are jobs as all others afterwards.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.api.deps import JobId, ServicesDep
from app.api.errors import HEAL_RAISES, RETRY_RAISES, SUBMIT_RAISES
from app.api.formats.jobs import delivery_view, estimate_view, heal_estimate_view, job_view
from app.api.openapi import Responses, responses_for
from app.api.schemas.events import WebhookDeliveryList
from app.api.schemas.heal import HealEstimateView
from app.api.schemas.jobs import (
    EstimateView,
    HealJobBody,
    PruneJobBody,
    PruneJobList,
    PruneJobView,
    RetryJobBody,
)
from app.api.submission import Submitted
from app.auth.keys import seen_tenant
from app.models.catalog import Catalog
from pruning.jobs.deletion import CheckpointInUse
from pruning.jobs.job import JobStatus
from pruning.jobs.store import CHANGE_RAISES, READ_RAISES

router = APIRouter(tags=["prune jobs"])

POLL_AFTER_S = 2

_LINKED = (
    "get_prune_job",
    "pause_prune_job",
    "resume_prune_job",
    "retry_prune_job",
    "cancel_prune_job",
    "delete_prune_job",
    "list_prune_job_events",
    "list_prune_job_checkpoints",
    "list_prune_job_webhook_deliveries",
)
_ACCEPTED: dict[str, Any] = {
    "description": "The job is queued. A repeated idempotency key returns the original response.",
    "headers": {
        "Location": {"description": "URL of the job.", "schema": {"type": "string"}},
        "Retry-After": {
            "description": "Seconds until the next poll.",
            "schema": {"type": "integer"},
        },
        "Idempotent-Replayed": {
            "description": "true if this repeats the response to an earlier request.",
            "schema": {"type": "string"},
        },
    },
    "links": {
        name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
        for name in _LINKED
    },
}


def _submitting(estimate: type[BaseModel], raises: Sequence[type[Exception]]) -> Responses:
    """The responses of a route that creates a job, or estimates what it would need."""
    described = "With dry_run: the estimated requirements of the job."
    return {
        **responses_for(*raises, has_body=True),
        200: {"model": estimate, "description": described},
        202: _ACCEPTED,
    }


_AS_IT_WAS = RetryJobBody()
_READ = responses_for(*READ_RAISES)
_CHANGE = responses_for(*CHANGE_RAISES)
_DELETE = responses_for(*CHANGE_RAISES, CheckpointInUse)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Any text. Within 24 hours, requests with the same key create only one job and "
        "get the same response.",
    ),
]


@router.post(
    "/prune-jobs",
    status_code=202,
    response_model=PruneJobView,
    responses=_submitting(EstimateView, SUBMIT_RAISES),
)
def create_prune_job(
    body: PruneJobBody,
    services: ServicesDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PruneJobView | JSONResponse:
    """Queue a pruning job. A request that cannot succeed is rejected immediately.

    ``dry_run`` creates no job and ignores the idempotency key.
    """
    submission = services.jobs.submission
    if body.dry_run:
        return JSONResponse(estimate_view(submission.estimate(body)).model_dump(mode="json"))
    submitted = submission.submit(body, idempotency_key)
    return _accepted(submitted, services.catalog, request, response)


def _accepted(
    submitted: Submitted, catalog: Catalog, request: Request, response: Response
) -> PruneJobView:
    """The response to a request that has created a job."""
    view = job_view(submitted.job, request, catalog)
    response.headers["Location"] = view.urls["self"]
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    if submitted.is_replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return view


@router.get("/prune-jobs", responses=_READ)
def list_prune_jobs(
    services: ServicesDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs per page.")] = 20,
    after: Annotated[
        str | None, Query(max_length=64, description="Id of the last job of the previous page.")
    ] = None,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
) -> PruneJobList:
    """List jobs, newest first. A key sees the jobs of its tenant and jobs created without keys; a
    key with the scope `admin` sees all jobs.
    """
    page = services.jobs.store.list(limit, after, status, seen_tenant())
    views = [job_view(job, request, services.catalog) for job in page.jobs]
    return PruneJobList(data=views, has_more=page.has_more)


@router.get("/prune-jobs/{job_id}", responses=_READ)
def get_prune_job(job_id: JobId, services: ServicesDep, request: Request) -> PruneJobView:
    return job_view(services.jobs.store.get(job_id), request, services.catalog)


@router.post("/prune-jobs/{job_id}/cancel", status_code=202, responses=_CHANGE)
def cancel_prune_job(job_id: JobId, services: ServicesDep, request: Request) -> PruneJobView:
    """Cancel a job. A queued job ends immediately, a running job after its current evaluation; its
    process is killed if it does not stop. Removals found so far can still be read.
    """
    return job_view(services.jobs.store.cancel(job_id), request, services.catalog)


@router.post("/prune-jobs/{job_id}/pause", status_code=202, responses=_CHANGE)
def pause_prune_job(job_id: JobId, services: ServicesDep, request: Request) -> PruneJobView:
    """Pause a job. A queued job leaves the queue immediately, a running job stops after its
    current evaluation.

    The job keeps the removals found so far. Until its worker stops, its status is ``running`` and
    ``pause_requested_at`` is set. Pausing a paused job has no effect.
    """
    return job_view(services.jobs.store.pause(job_id), request, services.catalog)


@router.post("/prune-jobs/{job_id}/resume", status_code=202, responses=_CHANGE)
def resume_prune_job(job_id: JobId, services: ServicesDep, request: Request) -> PruneJobView:
    """Resume a paused job. It is queued first within its priority, and continues where it stopped.

    If its worker has not stopped yet, the pause request is withdrawn.
    """
    job = services.jobs.store.resume(job_id)
    if job.status is JobStatus.QUEUED:
        services.jobs.queue.enqueue(job_id)
    return job_view(job, request, services.catalog)


@router.post(
    "/prune-jobs/{job_id}/retry",
    status_code=202,
    responses=responses_for(*RETRY_RAISES, has_body=True),
)
def retry_prune_job(
    job_id: JobId, services: ServicesDep, request: Request, body: RetryJobBody = _AS_IT_WAS
) -> PruneJobView:
    """Retry a failed or cancelled job. It is queued first within its priority. The search results
    are kept, and no candidate is scored again.

    The body may change the settings of the steps after the search. Without a body, nothing
    changes. An interrupted healing continues if its settings stay the same.
    """
    return job_view(services.jobs.submission.retry(job_id, body), request, services.catalog)


@router.delete("/prune-jobs/{job_id}", status_code=204, responses=_DELETE)
def delete_prune_job(job_id: JobId, services: ServicesDep) -> None:
    """Delete a finished job, its events and its published checkpoint.

    The names of its variants are removed, and ``<model>@-k`` refers to the previous removal order
    again. Running generations finish, because their weights are in memory. The request is rejected
    while an alias refers to the checkpoint or a prefix of it.
    """
    services.jobs.deletion.delete(job_id)


@router.get("/prune-jobs/{job_id}/webhook-deliveries", responses=_READ)
def list_prune_job_webhook_deliveries(job_id: JobId, services: ServicesDep) -> WebhookDeliveryList:
    """List the last 100 delivery attempts, oldest first. Messages without an attempt are not
    listed.
    """
    services.jobs.store.get(job_id)
    attempts = services.jobs.outbox.attempts(job_id)
    return WebhookDeliveryList(data=[delivery_view(attempt) for attempt in attempts])


@router.post(
    "/heal-jobs",
    status_code=202,
    response_model=PruneJobView,
    responses=_submitting(HealEstimateView, HEAL_RAISES),
)
def create_heal_job(
    body: HealJobBody,
    services: ServicesDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PruneJobView | JSONResponse:
    """Queue a job that trains a published pruned model to match the predictions of its dense
    model.

    The job is followed, paused, cancelled and deleted under ``/prune-jobs``, and publishes
    ``NAME@ID+healed`` with its own id. ``dry_run`` creates no job and ignores the idempotency key.
    """
    if body.dry_run:
        view = heal_estimate_view(*services.jobs.submission.estimate_healing(body))
        return JSONResponse(view.model_dump(mode="json"))
    submitted = services.jobs.submission.submit(body, idempotency_key)
    return _accepted(submitted, services.catalog, request, response)
