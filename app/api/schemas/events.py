"""Events of jobs, and the webhooks that send them: where to, and the attempts to do so."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import Body, kind
from pruning.jobs.job import FINAL_EVENTS, WebhookEvent


class PruneJobEventView(BaseModel):
    id: str = Field(description="Id of the event; later events have larger ids.")
    object: Literal["prune_job.event"] = kind("prune_job.event")
    created_at: float = Field(description="Time of the event, in seconds since the epoch.")
    level: str = Field(description="Level: info, warn or error.")
    message: str = Field(description="Description of the event.")
    type: str = Field(description="Kind of the event.")
    data: dict[str, Any] = Field(description="Data of the event, depending on its type.")


class PruneJobEventList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[PruneJobEventView] = Field(description="The events, oldest first.")
    has_more: bool = Field(description="Whether there are newer events.")


class WebhookBody(Body):
    """Where to send signed messages about the status of the job; by default, final ones only."""

    url: str = Field(
        description="URL with http or https, without credentials, up to 2048 characters."
    )
    events: list[WebhookEvent] = Field(
        default=list(FINAL_EVENTS),
        min_length=1,
        max_length=len(WebhookEvent),
        description="Events to send.",
    )


class WebhookView(BaseModel):
    url: str = Field(description="URL that messages are sent to.")
    events: list[WebhookEvent] = Field(description="Events that are sent.")


class WebhookDeliveryView(BaseModel):
    """One attempt to deliver a message."""

    id: str = Field(description="Id of the message, sent as webhook-id.")
    object: Literal["webhook_delivery"] = kind("webhook_delivery")
    type: WebhookEvent = Field(description="Event that the message is about.")
    attempt: int = Field(description="Number of the attempt, from 1.")
    at: float = Field(description="Time of the attempt, in seconds since the epoch.")
    duration_s: float = Field(description="Seconds until the response or the failure.")
    response_status: int | None = Field(
        description="HTTP status of the response; null without a response."
    )
    error: str | None = Field(
        description="Error of the attempt; null if the message was delivered."
    )
    next_attempt_at: float | None = Field(
        description="Time of the next attempt; null after a delivery or the last attempt."
    )


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[WebhookDeliveryView] = Field(description="Attempts, oldest first.")


class SinkView(BaseModel):
    """Another destination of a job's result, and the state of its upload."""

    sink: str = Field(description="store: the object store for checkpoints; or mlflow.")
    is_sent: bool = Field(
        description="Whether the result was sent; false while waiting or retrying."
    )
    num_attempts: int = Field(description="Number of failed attempts.")
    at: float = Field(description="Time of the last change, in seconds since the epoch.")
    url: str | None = Field(description="URL of the result; null until it is sent.")
    error: str | None = Field(description="Error of the last attempt; null if it succeeded.")
