"""Evaluation of a served model on held-out text."""

import asyncio
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api.deps import GeneratorDep, ServicesDep
from app.api.formats.models import interval_fields
from app.api.generations import SheddingRoute, unless_gone
from app.api.openapi import responses_for
from app.api.routes.compare import engine_view
from app.api.routes.results import ResultReportView
from app.api.schemas.bodies import Body, documented, view_of
from app.api.schemas.generate import ModelName
from app.compare.evaluation import RAISES, Evaluation, EvaluationRequest, evaluate
from app.compare.likelihood import Scorer
from app.compare.recorded import record_qualities
from app.engine.async_engine import EngineStopped
from app.results.store import ResultKind, ResultNotKept, ResultStore
from pruning.evaluation.limits import times
from pruning.evaluation.quality import Perplexity

router = APIRouter(tags=["generate"], route_class=SheddingRoute)

Text = Literal["prose", "code", "documentation"]
MAX_WINDOWS = 128
MAX_SEQLEN = 4096


class EvalBody(Body):
    """Packaged held-out text, which no job uses for calibration."""

    model: ModelName = Field(description="A dense model, a variant or an alias.")
    texts: Annotated[list[Text], Field(min_length=1, max_length=3)] = documented(
        list(get_args(Text)), "Packaged texts to evaluate on."
    )
    num_windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = documented(
        16, "Windows per text; intervals need at least three."
    )
    seqlen: Annotated[int, Field(ge=2, le=MAX_SEQLEN)] = documented(128, "Tokens per window.")


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
    """Measure the perplexity of a model on held-out text, and compare it with its dense model.

    The engine evaluates windows between the steps of other requests, so a large evaluation takes
    minutes but hardly delays them. Evaluations run one at a time. Ratios have 95 % intervals, from
    the differences between the two models on the same windows. The result is stored, see
    ``Location`` and ``GET /results``. The advice takes that of int8 weights if each text had at
    least 24 windows. Closing the connection cancels the evaluation.
    """
    wanted = EvaluationRequest(
        body.model, list(dict.fromkeys(body.texts)), body.num_windows, body.seqlen
    )
    scorer = Scorer(generator, services.generation.engine, services.key_limits.scored)
    work = evaluate(wanted, scorer, services.generation.evaluating)
    evaluation = await unless_gone(request.receive, work)
    await asyncio.to_thread(record_qualities, evaluation, services.catalog)
    kept = await asyncio.to_thread(_kept, services.results, evaluation)
    response.headers["Location"] = f"/results/{kept.id}"
    return kept


def _kept(results: ResultStore, evaluation: Evaluation) -> ResultReportView:
    """Raises ``ResultNotKept``."""
    entry, headline = evaluation.served.entry, _headline(evaluation)
    tenants = [entry.order.tenant] if entry.order and entry.order.tenant else []
    try:
        result_id = results.keep(
            ResultKind.EVAL, entry.base, headline, _report(evaluation), tenants=tenants
        )
    except OSError as error:
        raise ResultNotKept(error, headline) from error
    return view_of(ResultReportView, results.get(result_id))


def _report(evaluation: Evaluation) -> dict[str, Any]:
    """What is kept."""
    dense = evaluation.dense or (None,) * len(evaluation.perplexities)
    entry = evaluation.served.entry
    return {
        "model": entry.name,
        "dense": entry.base,
        "num_blocks": entry.num_blocks,
        "engine": engine_view(evaluation.served).model_dump(),
        "texts": [
            _text(own, whole) for own, whole in zip(evaluation.perplexities, dense, strict=True)
        ],
    }


def _headline(evaluation: Evaluation) -> str:
    """The ratio to the dense model on each text, or else the perplexity."""
    name = evaluation.served.entry.name
    figures = [
        f"{one.text} {times(one.ratio)}" if one.ratio else f"{one.text} {one.perplexity:.2f}"
        for one in evaluation.perplexities
    ]
    return f"{name}: {', '.join(figures)}"


def _text(own: Perplexity, dense: Perplexity | None) -> dict[str, Any]:
    return {
        "text": own.text,
        "num_windows": own.num_windows,
        "seqlen": own.seqlen,
        **interval_fields("perplexity", own.interval),
        "dense_perplexity": None if dense is None else dense.perplexity,
        **interval_fields("ratio", own.ratio),
    }
