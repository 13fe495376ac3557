"""Evaluation of a served model on held-out text."""

import asyncio
from collections.abc import Mapping
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
from app.api.schemas.jobs import TaskNames
from app.compare.evaluation import RAISES, Evaluation, EvaluationRequest, evaluate
from app.compare.likelihood import Scorer
from app.compare.recorded import record_qualities
from app.compare.task_evaluation import TaskQuestions, TasksFailed, answered
from app.engine.async_engine import EngineStopped
from app.results.store import ResultKind, ResultNotKept, ResultStore
from pruning.evaluation.limits import times
from pruning.evaluation.quality import Perplexity
from pruning.evaluation.task_errors import ZeroShotUnavailable
from pruning.spec import InvalidSpec
from pruning.spec.tasks import MIN_QUESTIONS, check_tasks

router = APIRouter(tags=["generate"], route_class=SheddingRoute)

Text = Literal["prose", "code", "documentation"]
MAX_WINDOWS = 128
MAX_SEQLEN = 4096


class EvalBody(Body):
    """Packaged held-out text, which no job uses for calibration."""

    model: ModelName = Field(description="A dense model, a variant or an alias.")
    texts: Annotated[list[Text], Field(max_length=3)] = documented(
        list(get_args(Text)), "Packaged texts to evaluate on; none needs tasks."
    )
    num_windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = documented(
        16, "Windows per text; intervals need at least three."
    )
    seqlen: Annotated[int, Field(ge=2, le=MAX_SEQLEN)] = documented(128, "Tokens per window.")
    tasks: TaskNames = documented(
        (),
        "Tasks that this model and its dense model answer: those with a file in the folder "
        "SLEB_TASK_DATA_DIR of the service, and generated ones, as of a job.",
    )
    task_questions: Annotated[int, Field(ge=MIN_QUESTIONS)] | None = documented(
        200, "Questions of each task, the first ones; null for all."
    )

    def of_texts(self) -> EvaluationRequest:
        texts = list(dict.fromkeys(self.texts))
        return EvaluationRequest(self.model, texts, self.num_windows, self.seqlen)

    def of_tasks(self) -> TaskQuestions | None:
        """Raises ``InvalidSpec``."""
        check_tasks(self.tasks, self.task_questions, None)
        if not (self.texts or self.tasks):
            raise InvalidSpec("texts", "nothing to evaluate: expected some texts or tasks")
        return TaskQuestions(self.tasks, self.task_questions) if self.tasks else None


@router.post(
    "/evals",
    name="evaluate",
    responses=responses_for(
        *RAISES,
        InvalidSpec,
        ZeroShotUnavailable,
        TasksFailed,
        EngineStopped,
        ResultNotKept,
        has_body=True,
    ),
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

    ``tasks`` are answered by a process of its own, which loads the models once more, as `sleb eval`
    does. The report has ``tasks``, with the accuracy and its standard error, and ``task_shares`` of
    the dense accuracy above chance, with flips, which the advice takes too.
    """
    asked = body.of_tasks()
    if asked is not None:
        await asyncio.to_thread(asked.check, services.settings)
    wanted = body.of_texts()
    scorer = Scorer(generator, services.generation.engine, services.key_limits.scored)
    turn = services.generation.evaluating

    async def work() -> tuple[Evaluation, Mapping[str, Any]]:
        evaluation = await evaluate(wanted, scorer, turn)
        if asked is None:
            return evaluation, {}
        name = evaluation.served.entry.name
        async with turn:
            return evaluation, await answered(name, asked, services.settings)

    evaluation, tasks = await unless_gone(request.receive, work())
    await asyncio.to_thread(record_qualities, evaluation, services.catalog)
    kept = await asyncio.to_thread(_kept, services.results, evaluation, tasks)
    response.headers["Location"] = f"/results/{kept.id}"
    return kept


def _kept(
    results: ResultStore, evaluation: Evaluation, tasks: Mapping[str, Any]
) -> ResultReportView:
    """Raises ``ResultNotKept``."""
    entry, headline = evaluation.served.entry, _headline(evaluation, tasks)
    tenants = [entry.order.tenant] if entry.order and entry.order.tenant else []
    try:
        result_id = results.keep(
            ResultKind.EVAL, entry.base, headline, {**_report(evaluation), **tasks}, tenants=tenants
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


def _headline(evaluation: Evaluation, tasks: Mapping[str, Any]) -> str:
    """The ratio to the dense model on each text, or else the perplexity, and of each task the
    accuracy.
    """
    name = evaluation.served.entry.name
    figures = [
        f"{one.text} {times(one.ratio)}" if one.ratio else f"{one.text} {one.perplexity:.2f}"
        for one in evaluation.perplexities
    ]
    figures += [f"{one['task']} {one['value']:.3f}" for one in tasks.get("tasks", ())]
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
