"""Measurements of the frontier: which way to make a model cheaper."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.deps import Services, ServicesDep
from app.api.generations import EventStream, Followed, followed, unless_gone
from app.api.openapi import EVENT_STREAM, Responses, responses_for
from app.api.routes.results import ResultReportView
from app.api.schemas.bodies import view_of
from app.api.schemas.frontier import FrontierBody, FrontierProgressView
from app.compare.frontier import FrontierBusy, FrontierFailed, FrontierRequest, measured
from app.compare.task_evaluation import TaskQuestions
from app.models.advice import dense_model
from app.models.aliases import InvalidAliasFile
from app.models.catalog import Catalog, UnknownModel
from app.results.store import ResultKind, ResultNotKept
from pruning.evaluation.task_errors import ZeroShotUnavailable
from pruning.jobs.redis import JobStoreUnavailable
from pruning.spec import InvalidSpec

router = APIRouter(tags=["models"])


_RESPONSES: Responses = {
    **responses_for(
        UnknownModel,
        InvalidAliasFile,
        JobStoreUnavailable,
        InvalidSpec,
        FrontierBusy,
        FrontierFailed,
        ResultNotKept,
        ZeroShotUnavailable,
        has_body=True,
    ),
    200: {"content": EVENT_STREAM},
}


@router.post("/frontiers", response_model=ResultReportView, responses=_RESPONSES)
async def measure_frontier(
    body: FrontierBody, services: ServicesDep, request: Request
) -> ResultReportView | Response:
    """Measure int8 weights, every published depth and both together, and say what to take.

    A process of its own loads the models once more, asks them tasks, and times them in turns with
    the dense model, as `sleb frontier` does; meanwhile other requests are served, which makes the
    speeds noisier.
    What is measured is kept for the advice, and the result is stored, see ``GET /results``. Only
    one frontier is measured at a time. Closing the connection cancels the measurement.

    With ``stream``, the response is a stream of server-sent events: ``progress`` with each step,
    and finally ``done`` with the body of a response without ``stream``, or ``error`` with a problem
    document.
    """
    asked = await asyncio.to_thread(_asked, body, services.catalog)
    TaskQuestions(asked.tasks or (), asked.task_questions).check(services.settings)
    if services.measuring.locked():
        raise FrontierBusy(
            "another frontier is being measured: wait until it is done, or cancel it"
        )

    async def work(
        observe: Callable[[FrontierProgressView], object] = lambda _view: None,
    ) -> ResultReportView:
        async with services.measuring:
            report = await measured(
                asked, services.settings, lambda step: observe(FrontierProgressView(step=step))
            )
        return await asyncio.to_thread(_kept, services, asked.model, report)

    if body.stream:
        return EventStream(followed(Followed(work, request.url.path)), Followed.events)
    return await unless_gone(request.receive, work())


def _asked(body: FrontierBody, catalog: Catalog) -> FrontierRequest:
    """Raises ``UnknownModel``, ``InvalidSpec`` and ``JobStoreUnavailable``."""
    model, is_here = dense_model(body.model, catalog)
    if not is_here:
        raise UnknownModel(f"{model} is not here, only checkpoints of it: add it again")
    if catalog.resolve(model).external is not None:
        raise InvalidSpec("model", f"{model} is on another server: only models here are measured")
    return replace(body.asked(), model=model)


def _kept(services: Services, model: str, report: dict[str, Any]) -> ResultReportView:
    """Raises ``ResultNotKept``."""
    headline = report["sentence"]
    try:
        result_id = services.results.keep(ResultKind.FRONTIER, model, headline, report)
    except OSError as error:
        raise ResultNotKept(error, headline) from error
    return view_of(ResultReportView, services.results.get(result_id))
