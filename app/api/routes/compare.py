"""Comparison of variants of one model: their outputs, log probabilities and times."""

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import version
from statistics import fmean

from fastapi import APIRouter, Request, Response

from app.api.deps import GeneratorDep, ServicesDep
from app.api.generations import (
    EventStream,
    Followed,
    Observe,
    SheddingRoute,
    followed,
    unless_gone,
)
from app.api.openapi import EVENT_STREAM, Responses, responses_for
from app.api.schemas.bodies import view_of
from app.api.schemas.compare import (
    CompareBody,
    ComparedModelView,
    ComparedOutputView,
    ComparedPromptView,
    CompareProgressView,
    CompareView,
    ControlView,
    DivergenceView,
    EngineView,
    TokenTextView,
)
from app.api.schemas.generate import TimingsView
from app.api.schemas.sampling import sampling_params
from app.compare.compare import (
    RAISES,
    ComparedVariant,
    Comparison,
    ComparisonRequest,
    run_comparison,
    speedups,
    token_agreement,
)
from app.compare.likelihood import Scorer, token_ids
from app.compare.recorded import record_speedups
from app.compare.speedup import kernel_names
from app.generation.request import Served, ServedElsewhere
from app.generation.vocabulary import Vocabulary
from app.request_id import current_request_id

router = APIRouter(tags=["generate"], route_class=SheddingRoute)

_RESPONSES: Responses = {**responses_for(*RAISES, has_body=True), 200: {"content": EVENT_STREAM}}


@router.post("/compare", response_model=CompareView, responses=_RESPONSES)
async def compare(
    body: CompareBody, generator: GeneratorDep, services: ServicesDep, request: Request
) -> CompareView | Response:
    """Run the same prompts on every model in turn, and compare outputs and latency.

    The models run one after another in the same engine; each repeat starts with another model. In
    vLLM, each model has its own server, and the others are idle. Other requests are still served.

    A speed-up is a ratio of mean times. Its verdict is ``faster`` or ``slower`` if the 95 %
    interval excludes 1 and is no wider than the effect, ``no difference`` if the interval lies
    within 3 % of 1, and otherwise ``undecided``. The baseline runs a second time as the control: a
    speed-up whose interval overlaps that of the control is ``undecided``, and so is one between
    models that ran different kernels.

    The comparison waits while kernels of a model are compiled or selected. Set ``ignore_eos`` for
    outputs of equal length. Metrics count these requests as ``bench``. A speed-up over the dense
    model is stored as the measured speed-up of its depth if it has at least three repeats and 16
    tokens, unless ``sleb bench`` measured it or it is known more closely. The stored interval
    includes the noise of the control. One that spans more than a factor of 2 is not stored. With
    ``max_seconds``, a noisy comparison runs more repeats until its intervals are narrow.

    With ``stream``, the response is a stream of server-sent events: ``progress`` with the number of
    finished turns, and finally ``done`` with the body of a response without ``stream``, or
    ``error`` with a problem document.
    """
    comparison_request = _comparison_request(body)
    scorer = Scorer(generator, services.generation.engine, services.key_limits.scored)

    async def compared(observe: Observe = lambda _view: None) -> CompareView:
        def count(done: int, total: int) -> None:
            observe(CompareProgressView(done=done, total=total))

        comparison = await run_comparison(comparison_request, scorer, count)
        await asyncio.to_thread(record_speedups, comparison, services.catalog)
        return _compare_view(comparison)

    if body.stream:
        return EventStream(followed(Followed(compared, request.url.path)), Followed.events)
    return await unless_gone(request.receive, compared())


def _comparison_request(body: CompareBody) -> ComparisonRequest:
    return ComparisonRequest(
        models=body.models,
        baseline=body.baseline or body.models[0],
        prompts=body.prompts,
        params=sampling_params(body),
        stop=body.stop_strings,
        repeats=body.repeats,
        max_seconds=body.max_seconds,
    )


def _compare_view(comparison: Comparison) -> CompareView:
    variants, baseline = comparison.variants, comparison.baseline
    prompts = baseline.rounds[0]
    outputs = [
        [_output(baseline, variant, index) for index in range(len(prompts))] for variant in variants
    ]
    return CompareView(
        id=current_request_id.get() or "",
        created_at=time.time(),
        models=[variant.served.entry.name for variant in variants],
        baseline=baseline.served.entry.name,
        repeats=len(baseline.rounds),
        seed=comparison.seed,
        prompts=[
            ComparedPromptView(
                index=index,
                prompt_tokens=prompt.num_prompt_tokens,
                outputs=[views[index] for views in outputs],
            )
            for index, prompt in enumerate(prompts)
        ],
        engine=engine_view(baseline.served),
        baseline_kernels=kernel_names(baseline.kernels),
        control=_control(comparison),
        results=[
            _result(comparison, variant, views)
            for variant, views in zip(variants, outputs, strict=True)
            if variant is not baseline
        ],
    )


def _output(baseline: ComparedVariant, variant: ComparedVariant, index: int) -> ComparedOutputView:
    output = variant.rounds[0][index]
    of_baseline, ids = token_ids(baseline.rounds[0][index]), token_ids(output)
    agreement = token_agreement(of_baseline, ids)
    ours, theirs = variant.mean_logprobs[index], baseline.mean_logprobs[index]
    return ComparedOutputView(
        model=variant.served.entry.name,
        variant=variant.served.entry.kind,
        text=output.text,
        finish_reason=output.finish_reason.value,
        completion_tokens=output.num_tokens,
        timings=[view_of(TimingsView, outputs[index].timings) for outputs in variant.rounds],
        agreement=agreement.share,
        first_divergence=_divergence(baseline.served, agreement.first_divergence, of_baseline, ids),
        mean_logprob=ours,
        logprob_gap=None if ours is None or theirs is None else ours - theirs,
    )


def _divergence(
    served: Served, position: int | None, of_baseline: Sequence[int], of_model: Sequence[int]
) -> DivergenceView | None:
    if position is None:
        return None
    vocabulary = Vocabulary(served.tokenizer)

    def token(ids: Sequence[int]) -> TokenTextView | None:
        if position >= len(ids):
            return None
        return TokenTextView(token_id=ids[position], token=vocabulary.spell(ids[position]))

    return DivergenceView(position=position, baseline=token(of_baseline), model=token(of_model))


def _control(comparison: Comparison) -> ControlView | None:
    if comparison.control is None:
        return None
    rounds = zip(comparison.baseline.rounds, comparison.control.rounds, strict=True)
    pairs = [pair for of_round in rounds for pair in zip(*of_round, strict=True)]
    agreements = [token_agreement(token_ids(one), token_ids(other)).share for one, other in pairs]
    of_control = speedups(comparison, comparison.control)
    return view_of(ControlView, of_control, agreement=fmean(agreements))


def _result(
    comparison: Comparison, variant: ComparedVariant, outputs: Sequence[ComparedOutputView]
) -> ComparedModelView:
    gaps = [output.logprob_gap for output in outputs if output.logprob_gap is not None]
    return view_of(
        ComparedModelView,
        speedups(comparison, variant),
        model=variant.served.entry.name,
        agreement=fmean(output.agreement for output in outputs),
        logprob_gap=fmean(gaps) if gaps else None,
        kernels=kernel_names(variant.kernels),
    )


def engine_view(served: Served) -> EngineView:
    if isinstance(served, ServedElsewhere) and served.vllm is not None:
        vllm = served.vllm
        return EngineView(name="vllm", version=vllm.version, arguments=list(vllm.args))
    return EngineView(name="own", version=version("sleb-serve"), arguments=[])
