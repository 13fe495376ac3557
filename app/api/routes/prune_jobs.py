"""Pruning jobs: submit one, list them, look at one, pause, resume, cancel or delete it. The work is
the worker's.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from app.api.deps import ServicesDep
from app.api.errors import described
from app.api.formats.jobs import estimate_view, job_view
from app.api.schemas.jobs import EstimateView, PruneJobBody, PruneJobList, PruneJobView
from app.api.submission import estimate
from app.api.submission import submit as submit_job
from app.webhooks.target import InvalidWebhook, WebhooksOff
from pruning.jobs.estimate import DiskTooSmall
from pruning.jobs.idempotency import IdempotencyKeyReused
from pruning.jobs.job import IllegalTransition, JobNotFound, JobStatus
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import IdempotencyInFlight, QueueFull
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.store import ModelNotFound, NotAModel
from pruning.sleb import TooManyRemovals
from pruning.spec.prune import InvalidSpec, TargetUnreachable

router = APIRouter(prefix="/prune-jobs", tags=["prune jobs"])

POLL_AFTER_S = 2

_LINKED = (
    "get_prune_job",
    "pause_prune_job",
    "resume_prune_job",
    "cancel_prune_job",
    "delete_prune_job",
    "list_prune_job_events",
    "list_prune_job_checkpoints",
    "list_prune_job_webhook_deliveries",
)
_ACCEPTED: dict[str, Any] = {
    "description": "The job waits, or did so when the first request with this key was answered.",
    "headers": {
        "Location": {"description": "Where to look at it.", "schema": {"type": "string"}},
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
        "Idempotent-Replayed": {
            "description": "true: this is the answer to an earlier request.",
            "schema": {"type": "string"},
        },
    },
    "links": {
        name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
        for name in _LINKED
    },
}
_REFUSALS = described(
    ModelNotFound,
    JobNotFound,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InvalidSpec,
    TooManyRemovals,
    TargetUnreachable,
    NotAModel,
    UnknownArchitecture,
    UnsupportedConfig,
    DiskTooSmall,
    InvalidWebhook,
    WebhooksOff,
    QueueFull,
    JobStoreUnavailable,
    has_body=True,
)
_OF_ONE_JOB = described(JobNotFound, JobStoreUnavailable)
_OF_A_CHANGE = described(JobNotFound, IllegalTransition, JobStoreUnavailable)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Any text of the client's. Within 24 hours, requests with one key make one job "
        "and get the same answer.",
    ),
]


@router.post(
    "",
    status_code=202,
    name="create_prune_job",
    response_model=PruneJobView,
    responses={
        **_REFUSALS,
        200: {"model": EstimateView, "description": "With dry_run: what the job would need."},
        202: _ACCEPTED,
    },
)
def submit(
    body: PruneJobBody,
    services: ServicesDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PruneJobView | JSONResponse:
    """Take a job if it can be done at all; what cannot is refused here, not hours later.

    With ``dry_run`` nothing is created, and a key is not looked at.
    """
    if body.dry_run:
        return JSONResponse(estimate_view(estimate(body, services)).model_dump(mode="json"))
    submitted = submit_job(body, services, idempotency_key)
    view = job_view(submitted.job, request)
    response.headers["Location"] = view.urls["self"]
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    if submitted.is_replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return view


@router.get("", name="list_prune_jobs", responses=_OF_ONE_JOB)
def list_jobs(
    services: ServicesDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    status: JobStatus | None = None,
) -> PruneJobList:
    """The newest first; ``after`` is the id of the last job of the page before."""
    page = services.jobs.list(limit, after, status)
    jobs = [job_view(job, request) for job in page.jobs]
    return PruneJobList(data=jobs, has_more=page.has_more)


@router.get("/{job_id}", name="get_prune_job", responses=_OF_ONE_JOB)
def get_job(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    return job_view(services.jobs.get(job_id), request)


@router.post("/{job_id}/cancel", status_code=202, name="cancel_prune_job", responses=_OF_A_CHANGE)
def cancel(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    """A waiting job ends at once, a running one after its current evaluation, or when its process
    has been killed for not stopping. What was found can still be read.
    """
    return job_view(services.jobs.cancel(job_id), request)


@router.post("/{job_id}/pause", status_code=202, name="pause_prune_job", responses=_OF_A_CHANGE)
def pause(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    """A waiting job leaves the queue at once, a running one stops after its current evaluation.

    It keeps what was found. Until its worker has stopped it is still running, and has
    ``pause_requested_at``. To pause once more changes nothing.
    """
    return job_view(services.jobs.pause(job_id), request)


@router.post("/{job_id}/resume", status_code=202, name="resume_prune_job", responses=_OF_A_CHANGE)
def resume(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    """A paused job goes to the front of its priority, and goes on behind what was found.

    While its worker has not stopped yet, the request to pause is withdrawn.
    """
    job = services.jobs.resume(job_id)
    if job.status is JobStatus.QUEUED:
        services.queue.enqueue(job_id)
    return job_view(job, request)


@router.delete("/{job_id}", status_code=204, name="delete_prune_job", responses=_OF_A_CHANGE)
def delete(job_id: str, services: ServicesDep) -> None:
    """Delete a job that has ended, with its events and what it has published.

    Its variants can no longer be named, and ``<model>@-k`` falls back to the order before. What is
    being generated with one goes on undisturbed: its weights are in memory, mostly the dense
    model's own.
    """
    services.deletion.delete(job_id)
