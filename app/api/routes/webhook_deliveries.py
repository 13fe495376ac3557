"""What came of the messages to a job's webhook."""

from fastapi import APIRouter

from app.api.deps import ServicesDep
from app.api.errors import described
from app.api.schemas.jobs import WebhookDeliveryList, WebhookDeliveryView
from pruning.jobs.job import JobNotFound, WebhookEvent
from pruning.jobs.redis import JobStoreUnavailable

router = APIRouter(prefix="/prune-jobs", tags=["prune jobs"])


@router.get(
    "/{job_id}/webhook-deliveries",
    name="list_prune_job_webhook_deliveries",
    responses=described(JobNotFound, JobStoreUnavailable),
)
def list_deliveries(job_id: str, services: ServicesDep) -> WebhookDeliveryList:
    """The last 100 attempts, the oldest first. A message is listed once it has been tried."""
    services.jobs.get(job_id)
    views = [
        WebhookDeliveryView(
            id=attempt.message_id,
            type=WebhookEvent(attempt.type),
            attempt=attempt.number,
            at=attempt.at,
            duration_s=attempt.duration_s,
            response_status=attempt.response_status,
            error=attempt.error,
            next_attempt_at=attempt.next_attempt_at,
        )
        for attempt in services.outbox.attempts(job_id)
    ]
    return WebhookDeliveryList(data=views)
