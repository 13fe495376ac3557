"""Variants of one model side by side: what they say, how likely that is, and how fast it came."""

from fastapi import APIRouter, Request

from app.api.deps import EngineDep, GeneratorDep
from app.api.errors import described
from app.api.formats.compare import compare_view
from app.api.schemas.compare import CompareBody, CompareView
from app.api.sse import unless_gone
from app.compare.compare import Comparer, NotComparable, Question
from app.engine.admission import Overloaded
from app.engine.async_engine import EngineStopped
from app.engine.engine import RequestRefused
from app.generation.output import GenerationFailed
from app.models.catalog import UnknownModel
from app.models.registry import ModelReplaced
from app.models.weights import NoRoomForWeights
from pruning.jobs.redis import JobStoreUnavailable

router = APIRouter(tags=["generate"])


@router.post(
    "/compare",
    responses=described(
        UnknownModel,
        NotComparable,
        RequestRefused,
        Overloaded,
        EngineStopped,
        JobStoreUnavailable,
        ModelReplaced,
        NoRoomForWeights,
        GenerationFailed,
        has_body=True,
    ),
)
async def compare(
    body: CompareBody, generator: GeneratorDep, engine: EngineDep, request: Request
) -> CompareView:
    """Answer the same prompts with every model, in turn, and say how the answers and times differ.

    The models run one after another in the same engine, first another one in every repeat, beside
    whatever else is asked of the service. A speed-up is a ratio of mean times. It has a verdict,
    ``faster``, ``slower`` or ``no difference``, only if its 95 % interval over the repeats allows
    one: it does not contain 1 and is no wider than the effect, or it lies within 3 % of 1. Set
    ``ignore_eos`` to have answers of equal lengths. Metrics count all this as ``bench``.
    """
    question = Question(
        models=body.models,
        baseline=body.models.index(body.baseline or body.models[0]),
        prompts=body.prompts,
        params=body.params(),
        stop=body.stop_strings,
        repeats=body.repeats,
    )
    comparer = Comparer(generator, engine)
    return compare_view(await unless_gone(request.receive, comparer.compare(question)))
