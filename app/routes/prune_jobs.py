"""Pruning jobs: submit one, list them, look at one, cancel one. The work is the worker's."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.deps import ServicesDep
from app.schemas import (
    CalibrationBody,
    JobErrorView,
    ProgressView,
    PruneJobBody,
    PruneJobList,
    PruneJobView,
)
from pruning.job import Job, JobStatus
from pruning.spec import CalibrationSpec, InvalidSpec, PruneSpec

router = APIRouter(prefix="/prune-jobs", tags=["prune jobs"])

POLL_AFTER_S = 2


@router.post("", status_code=202)
def submit(
    body: PruneJobBody, services: ServicesDep, request: Request, response: Response
) -> PruneJobView:
    """Take a job if it can be done at all; what cannot is refused here, not hours later."""
    spec = _spec(body, services.settings.texts_dir)
    info = services.models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)
    if info.max_positions is not None and spec.calibration.seqlen > info.max_positions:
        raise InvalidSpec(
            "calibration.seqlen",
            f"seqlen={spec.calibration.seqlen} is beyond the {info.max_positions} positions of "
            f"{spec.model}",
        )
    job = services.jobs.create(spec, body.metadata)
    services.queue.enqueue(job.id)
    view = job_view(job, request)
    response.headers["Location"] = view.urls["self"]
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    return view


@router.get("")
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


@router.get("/{job_id}", name="get_prune_job")
def get_job(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    return job_view(services.jobs.get(job_id), request)


@router.post("/{job_id}/cancel", status_code=202, name="cancel_prune_job")
def cancel(job_id: str, services: ServicesDep, request: Request) -> PruneJobView:
    """A waiting job ends at once, a running one after its current evaluation."""
    return job_view(services.jobs.cancel(job_id), request)


def _spec(body: PruneJobBody, texts_dir: Path) -> PruneSpec:
    return PruneSpec(
        model=body.model,
        num_remove=body.num_remove,
        sparsity=body.sparsity,
        max_perplexity_ratio=body.max_perplexity_ratio,
        target_speedup=body.target_speedup,
        calibration=_calibration(body.calibration, texts_dir),
        protect_first=body.protect_first,
        protect_last=body.protect_last,
        dtype=body.dtype,
        evaluate=body.evaluate,
        search=body.search,
        resident=body.resident,
    )


def _calibration(body: CalibrationBody, texts_dir: Path) -> CalibrationSpec:
    path = None if body.path is None else str(_confined(body.path, texts_dir))
    return CalibrationSpec(
        body.dataset, body.sampling, body.num_samples, body.seqlen, body.seed, path
    )


def _confined(path: str, texts_dir: Path) -> Path:
    """A client may name files of the texts folder, links resolved, and no others."""
    if "\0" in path:
        raise InvalidSpec("calibration.path", "the path contains a null character")
    resolved = (texts_dir / path).resolve()
    if not resolved.is_relative_to(texts_dir.resolve()) or not resolved.is_file():
        raise InvalidSpec(
            "calibration.path",
            f"no file {path[:256]!r} in the texts folder of the service: put it there first",
        )
    return resolved


def job_view(job: Job, request: Request) -> PruneJobView:
    error = job.error
    return PruneJobView(
        id=job.id,
        model=job.model,
        status=job.status.value,
        phase=job.phase.value if job.phase else None,
        progress=ProgressView(
            evaluations_done=job.progress.evaluations_done,
            evaluations_total=job.progress.evaluations_total,
            ratio=job.progress.ratio,
        ),
        removed_blocks=list(job.removed_blocks),
        losses=list(job.losses),
        dense_loss=job.dense_loss,
        attempt=job.attempt,
        worker=job.worker,
        pruned_model=job.pruned_model,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        estimated_finish=job.estimated_finish,
        error=JobErrorView(code=error.code, message=error.message, param=error.param)
        if error
        else None,
        metadata=dict(job.metadata),
        spec=job.spec.to_dict(),
        urls={
            "self": request.url_for("get_prune_job", job_id=job.id).path,
            "cancel": request.url_for("cancel_prune_job", job_id=job.id).path,
        },
    )
