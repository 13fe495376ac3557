"""Healing jobs: they are submitted here, and are jobs as all others afterwards."""

from fastapi import APIRouter, Request, Response

from app.api.deps import CatalogDep, SubmissionDep
from app.api.openapi import responses_for
from app.api.routes.prune_jobs import ACCEPTED, IdempotencyKey, accepted
from app.api.schemas.jobs import HealJobBody, PruneJobView
from app.api.submission import HEAL_RAISES

router = APIRouter(prefix="/heal-jobs", tags=["prune jobs"])


@router.post(
    "",
    status_code=202,
    name="create_heal_job",
    responses={**responses_for(*HEAL_RAISES, has_body=True), 202: ACCEPTED},
)
def submit(
    body: HealJobBody,
    submission: SubmissionDep,
    catalog: CatalogDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PruneJobView:
    """Queue a job that trains a published pruned model to predict what the dense one predicts.

    It is followed, paused, cancelled and deleted under ``/prune-jobs``, and publishes
    ``NAME@ID+healed`` with the id of its own.
    """
    return accepted(submission.submit_healing(body, idempotency_key), catalog, request, response)
