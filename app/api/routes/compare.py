"""Comparison of variants of one model: their outputs, log probabilities and times."""

import asyncio

from fastapi import APIRouter, Request

from app.api.deps import GeneratorDep, ServicesDep
from app.api.formats.compare import compare_view
from app.api.generations import SheddingRoute, unless_gone
from app.api.openapi import responses_for
from app.api.schemas.compare import CompareBody, CompareView
from app.api.schemas.sampling import sampling_params
from app.compare.compare import RAISES, ComparisonRequest, run_comparison
from app.compare.likelihood import Scorer
from app.compare.recorded import record_speedups

router = APIRouter(tags=["generate"], route_class=SheddingRoute)


@router.post("/compare", responses=responses_for(*RAISES, has_body=True))
async def compare(
    body: CompareBody, generator: GeneratorDep, services: ServicesDep, request: Request
) -> CompareView:
    """Run the same prompts on every model in turn, and compare outputs and times.

    The models run one after another in the same engine, and another one is first in each repeat.
    In vLLM, each has a server of its own, and the others are idle meanwhile.
    Other requests are served meanwhile. A speed-up is a ratio of mean times. Its verdict is
    ``faster`` or ``slower`` if the 95 % interval does not contain 1 and is no wider than the
    effect, ``no difference`` if the interval lies within 3 % of 1, else ``undecided``. The baseline
    runs a second time as the control. A speed-up whose interval overlaps that of the control is
    ``undecided``, and one of sides that ran different kernels. The comparison waits while kernels
    of a model are compiled or chosen. Set ``ignore_eos`` for outputs of equal length. Metrics count
    these requests as ``bench``. A speed-up over the dense model is kept as the measured one of its
    depth, from three repeats and 16 tokens on, unless ``sleb bench`` or more repeats measured it,
    or the control reads more than 10 % of noise. With ``max_seconds``, a noisy comparison takes
    more repeats, until its intervals are narrow.
    """
    comparison_request = ComparisonRequest(
        models=body.models,
        baseline=body.baseline or body.models[0],
        prompts=body.prompts,
        params=sampling_params(body),
        stop=body.stop_strings,
        repeats=body.repeats,
        max_seconds=body.max_seconds,
    )
    scorer = Scorer(generator, services.generation.engine, services.key_limits.scored)
    comparison = await unless_gone(request.receive, run_comparison(comparison_request, scorer))
    await asyncio.to_thread(record_speedups, comparison, services.catalog)
    return compare_view(comparison)
