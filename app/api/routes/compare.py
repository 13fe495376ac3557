"""Variants of one model side by side: what they say, how likely that is, and how fast it came."""

from fastapi import APIRouter, Request

from app.api.deps import EngineDep, GeneratorDep
from app.api.formats.compare import compare_view
from app.api.openapi import responses_for
from app.api.schemas.compare import CompareBody, CompareView
from app.api.schemas.sampling import sampling_params
from app.api.sse import unless_gone
from app.compare.compare import RAISES, Comparer, ComparisonRequest

router = APIRouter(tags=["generate"])


@router.post("/compare", responses=responses_for(*RAISES, has_body=True))
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
    comparison_request = ComparisonRequest(
        models=body.models,
        baseline=body.models.index(body.baseline or body.models[0]),
        prompts=body.prompts,
        params=sampling_params(body),
        stop=body.stop_strings,
        repeats=body.repeats,
    )
    comparer = Comparer(generator, engine)
    return compare_view(await unless_gone(request.receive, comparer.compare(comparison_request)))
