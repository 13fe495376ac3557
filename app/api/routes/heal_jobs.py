"""Healing jobs: they are submitted here, and are jobs as all others afterwards."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.api.deps import ServicesDep
from app.api.errors import HEAL_RAISES
from app.api.formats.jobs import heal_estimate_view
from app.api.openapi import responses_for
from app.api.routes.prune_jobs import ACCEPTED, IdempotencyKey, accepted
from app.api.schemas.heal import HealEstimateView
from app.api.schemas.jobs import HealJobBody, PruneJobView

router = APIRouter(prefix="/heal-jobs", tags=["prune jobs"])


@router.post(
    "",
    status_code=202,
    response_model=PruneJobView,
    responses={
        **responses_for(*HEAL_RAISES, has_body=True),
        200: {
            "model": HealEstimateView,
            "description": "With dry_run: an estimate of what the job would need.",
        },
        202: ACCEPTED,
    },
)
def create_heal_job(
    body: HealJobBody,
    services: ServicesDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> PruneJobView | JSONResponse:
    """Queue a job that trains a published pruned model to predict what the dense one predicts.

    It is followed, paused, cancelled and deleted under ``/prune-jobs``, and publishes
    ``NAME@ID+healed`` with the id of its own. ``dry_run`` creates nothing and ignores the
    idempotency key.
    """
    if body.dry_run:
        view = heal_estimate_view(*services.jobs.submission.estimate_healing(body))
        return JSONResponse(view.model_dump(mode="json"))
    submitted = services.jobs.submission.submit_healing(body, idempotency_key)
    return accepted(submitted, services.catalog, request, response)
