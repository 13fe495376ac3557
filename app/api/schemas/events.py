"""Events of jobs, and the webhooks that send them: where to, and the attempts to do so."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import Body, kind
from pruning.jobs.job import FINAL_EVENTS, WebhookEvent


class PruneJobEventView(BaseModel):
    id: str = Field(description="Of the event; later ones are larger.")
    object: Literal["prune_job.event"] = kind("prune_job.event")
    created_at: float = Field(description="Seconds since the epoch.")
    level: str = Field(description="info, warn or error.")
    message: str = Field(description="What happened, in a sentence.")
    type: str = Field(description="Kind of the event.")
    data: dict[str, Any] = Field(description="The facts of the event, by its type.")


class PruneJobEventList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[PruneJobEventView] = Field(description="The events, oldest first.")
    has_more: bool = Field(description="Whether newer events follow.")


class WebhookBody(Body):
    """Where to send signed messages about the status of the job; by default, final ones."""

    url: str = Field(description="http or https, without credentials, up to 2048 characters.")
    events: list[WebhookEvent] = Field(
        default=list(FINAL_EVENTS),
        min_length=1,
        max_length=len(WebhookEvent),
        description="The events to send.",
    )


class WebhookView(BaseModel):
    url: str = Field(description="Where messages are sent.")
    events: list[WebhookEvent] = Field(description="The events that are sent.")


class WebhookDeliveryView(BaseModel):
    """One attempt to deliver a message."""

    id: str = Field(description="Id of the message, sent as webhook-id.")
    object: Literal["webhook_delivery"] = kind("webhook_delivery")
    type: WebhookEvent = Field(description="The event that the message is about.")
    attempt: int = Field(description="1 for the first.")
    at: float = Field(description="When it was sent, in seconds since the epoch.")
    duration_s: float = Field(description="Time until the response or the failure.")
    response_status: int | None = Field(description="Null if there was no response.")
    error: str | None = Field(description="Null if the message was delivered.")
    next_attempt_at: float | None = Field(description="Null if it was delivered or given up.")


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[WebhookDeliveryView] = Field(description="The attempts, oldest first.")


class SinkView(BaseModel):
    """Where the result of a job is sent as well, and how far that is."""

    sink: str = Field(description="store, the object store for checkpoints, or mlflow.")
    is_sent: bool = Field(description="False while it waits, or is tried again.")
    num_attempts: int = Field(description="Attempts that have failed.")
    at: float = Field(description="When that last changed, in seconds since the epoch.")
    url: str | None = Field(description="Where it is; null until it is sent.")
    error: str | None = Field(description="Why the last attempt failed; null if it did not.")
