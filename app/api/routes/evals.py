"""Evaluation of a served model on held-out text."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.deps import EngineDep, EvaluatingDep, GeneratorDep, KeyLimitsDep, ResultsDep
from app.api.formats.evals import headline_of, report_of
from app.api.load_shedding import SheddingRoute
from app.api.openapi import responses_for
from app.api.routes.results import ResultReportView, result_view
from app.api.schemas.evals import EvalBody
from app.api.sse import unless_gone
from app.compare.evaluation import RAISES, EvaluationRequest, Evaluator
from app.engine.async_engine import EngineStopped
from app.results.store import ResultKind, ResultStore

router = APIRouter(tags=["generate"], route_class=SheddingRoute)


@router.post("/evals", responses=responses_for(*RAISES, EngineStopped, has_body=True))
async def evaluate(
    body: EvalBody,
    generator: GeneratorDep,
    engine: EngineDep,
    evaluating: EvaluatingDep,
    results: ResultsDep,
    limits: KeyLimitsDep,
    request: Request,
    response: Response,
) -> ResultReportView:
    """Measure the perplexity of a model on held-out text, beside that of its dense model.

    The engine reads windows between the steps of other requests, so a large evaluation takes
    minutes and delays them little. Evaluations wait for each other. Ratios have intervals of 95 %
    from the differences of the two models on the same windows. The result is kept, see ``Location``
    and ``GET /results``; a client that closes its connection ends the evaluation.
    """
    wanted = EvaluationRequest(
        body.model, list(dict.fromkeys(body.texts)), body.num_windows, body.seqlen
    )
    evaluator = Evaluator(generator, engine, evaluating, limits.scored)
    found = await unless_gone(request.receive, evaluator.evaluate(wanted))
    order = found.served.entry.order
    tenants = [order.tenant] if order and order.tenant else []
    result_id = await asyncio.to_thread(
        results.keep,
        ResultKind.EVAL,
        found.served.entry.base,
        headline_of(found),
        report_of(found),
        tenants=tenants,
    )
    response.headers["Location"] = f"/results/{result_id}"
    return await asyncio.to_thread(_kept, results, result_id)


def _kept(results: ResultStore, result_id: str) -> ResultReportView:
    found = results.get(result_id)
    return ResultReportView(**result_view(found).model_dump(), report=dict(found.report))
