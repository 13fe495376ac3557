"""Evaluation of a served model on held-out text."""

import asyncio

from fastapi import Request, Response

from app.api.deps import GeneratorDep, ServicesDep
from app.api.formats.evals import headline_of, report_of
from app.api.formats.same_names import view_of
from app.api.load_shedding import SheddingRoute
from app.api.openapi import responses_for
from app.api.router import Router
from app.api.routes.results import ResultReportView
from app.api.schemas.evals import EvalBody
from app.api.sse import unless_gone
from app.compare.evaluation import RAISES, Evaluation, EvaluationRequest, evaluate
from app.compare.likelihood import Scorer
from app.engine.async_engine import EngineStopped
from app.results.store import ResultKind, ResultNotKept, ResultStore

router = Router(tags=["generate"], route_class=SheddingRoute)


@router.post(
    "/evals",
    name="evaluate",
    responses=responses_for(*RAISES, EngineStopped, ResultNotKept, has_body=True),
)
async def evaluate_model(
    body: EvalBody,
    generator: GeneratorDep,
    services: ServicesDep,
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
    scorer = Scorer(generator, services.generation.engine, services.key_limits.scored)
    work = evaluate(wanted, generator, scorer, services.generation.evaluating)
    evaluation = await unless_gone(request.receive, work)
    kept = await asyncio.to_thread(_kept, services.results, evaluation)
    response.headers["Location"] = f"/results/{kept.id}"
    return kept


def _kept(results: ResultStore, evaluation: Evaluation) -> ResultReportView:
    """Raises ``ResultNotKept``."""
    entry, headline = evaluation.served.entry, headline_of(evaluation)
    tenants = [entry.order.tenant] if entry.order and entry.order.tenant else []
    try:
        result_id = results.keep(
            ResultKind.EVAL, entry.base, headline, report_of(evaluation), tenants=tenants
        )
    except OSError as error:
        raise ResultNotKept(error, headline) from error
    return view_of(ResultReportView, results.get(result_id))
