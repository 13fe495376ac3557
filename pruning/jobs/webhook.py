"""Whom to tell what becomes of a job: part of its record. Knows neither Redis nor HTTP."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum


class WebhookEvent(StrEnum):
    """``prune_job.`` and the status that a job has come to."""

    QUEUED = "prune_job.queued"  # once more: a new job is news to nobody
    RUNNING = "prune_job.running"
    PAUSED = "prune_job.paused"
    CANCELLING = "prune_job.cancelling"
    SUCCEEDED = "prune_job.succeeded"
    FAILED = "prune_job.failed"
    CANCELLED = "prune_job.cancelled"


FINAL_EVENTS = (WebhookEvent.SUCCEEDED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)


@dataclass(frozen=True)
class Webhook:
    """A message goes to ``url`` at each of these ``events``."""

    url: str
    events: tuple[WebhookEvent, ...] = FINAL_EVENTS

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Webhook":
        fields = json.loads(text)
        return cls(fields["url"], tuple(WebhookEvent(event) for event in fields["events"]))
