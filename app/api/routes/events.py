"""Events of a job, as pages or as a stream."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import StringConstraints

from app.api.deps import JobId, ServicesDep
from app.api.generations import EventStream
from app.api.openapi import EVENT_STREAM, Responses, responses_for
from app.api.schemas.bodies import view_of
from app.api.schemas.events import PruneJobEventList, PruneJobEventView
from pruning.jobs.events import TooManyWatchers
from pruning.jobs.job import JobEvent
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import READ_RAISES

router = APIRouter(prefix="/prune-jobs", tags=["prune jobs"])

STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
RECONNECT_MS = 2000

# Of a Redis stream, where an id without its second part means the first of that millisecond
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,19}(-[0-9]{1,19})?$")]
_RESPONSES: Responses = {
    **responses_for(*READ_RAISES, TooManyWatchers),
    200: {"content": EVENT_STREAM},
}


@router.get("/{job_id}/events", response_model=PruneJobEventList, responses=_RESPONSES)
async def list_prune_job_events(
    job_id: JobId,
    services: ServicesDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Events per page.")] = 20,
    after: Annotated[EventId | None, Query(description="Id of the last event received.")] = None,
    last_event_id: Annotated[
        EventId | None, Header(description="Alternative to after, for streams; overrides it.")
    ] = None,
) -> PruneJobEventList | Response:
    """List the events of a job, oldest first.

    With ``Accept: text/event-stream``, the response is a stream of server-sent events that ends
    with the job.
    """
    if STREAM in request.headers.get("accept", ""):
        services.jobs.events.check_room()  # refused without a thread, which others wait for
        await run_in_threadpool(services.jobs.store.get, job_id)  # raises before the stream starts
        return EventStream(services.jobs.events.watch(job_id, last_event_id or after), _lines)
    events = await run_in_threadpool(services.jobs.store.events, job_id, after, limit + 1)
    views = [view_of(PruneJobEventView, event) for event in events[:limit]]
    return PruneJobEventList(data=views, has_more=len(events) > limit)


async def _lines(events: AsyncIterator[JobEvent | None]) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RECONNECT_MS)
    sent_at = time.monotonic()
    try:
        async for event in events:
            if event is not None:
                data = view_of(PruneJobEventView, event).model_dump_json()
                yield format_sse_event(id=event.id, event=event.type, data_str=data)
            elif time.monotonic() - sent_at >= KEEP_ALIVE_S:
                yield KEEPALIVE_COMMENT
            else:
                continue
            sent_at = time.monotonic()
    except JobStoreUnavailable:
        yield format_sse_event(comment="the job store does not respond: reconnect later")
