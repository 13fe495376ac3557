"""The response body of a comparison."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from statistics import fmean

from app.api.schemas.bodies import view_of
from app.api.schemas.compare import (
    ComparedModelView,
    ComparedOutputView,
    ComparedPromptView,
    CompareView,
    ControlView,
    DivergenceView,
    EngineView,
    TokenTextView,
)
from app.api.schemas.generate import TimingsView
from app.compare.compare import (
    ComparedVariant,
    Comparison,
    TokenAgreement,
    speedups,
    token_agreement,
)
from app.compare.likelihood import token_ids
from app.compare.speedup import kernel_names
from app.generation.request import Served, ServedElsewhere
from app.generation.vocabulary import Vocabulary
from app.request_id import current_request_id


def compare_view(comparison: Comparison) -> CompareView:
    variants, baseline = comparison.variants, comparison.baseline
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
                prompt_tokens=output.num_prompt_tokens,
                outputs=[_output(baseline, variant, index) for variant in variants],
            )
            for index, output in enumerate(baseline.rounds[0])
        ],
        engine=engine_view(baseline.served),
        baseline_kernels=kernel_names(baseline.kernels),
        control=_control(comparison),
        results=[_result(comparison, variant) for variant in variants if variant is not baseline],
    )


def _output(baseline: ComparedVariant, variant: ComparedVariant, index: int) -> ComparedOutputView:
    output = variant.rounds[0][index]
    agreement = _agreement(baseline, variant, index)
    return ComparedOutputView(
        model=variant.served.entry.name,
        variant=variant.served.entry.kind,
        text=output.text,
        finish_reason=output.finish_reason.value,
        completion_tokens=output.num_tokens,
        timings=[view_of(TimingsView, outputs[index].timings) for outputs in variant.rounds],
        agreement=agreement.share,
        first_divergence=_divergence(baseline, variant, index, agreement.first_divergence),
        mean_logprob=variant.mean_logprobs[index],
        logprob_gap=_gap(baseline, variant, index),
    )


def _agreement(baseline: ComparedVariant, variant: ComparedVariant, index: int) -> TokenAgreement:
    return token_agreement(
        token_ids(baseline.rounds[0][index]), token_ids(variant.rounds[0][index])
    )


def _divergence(
    baseline: ComparedVariant, variant: ComparedVariant, index: int, position: int | None
) -> DivergenceView | None:
    if position is None:
        return None
    vocabulary = Vocabulary(baseline.served.tokenizer)

    def token(ids: Sequence[int]) -> TokenTextView | None:
        if position >= len(ids):
            return None
        return TokenTextView(token_id=ids[position], token=vocabulary.spell(ids[position]))

    return DivergenceView(
        position=position,
        baseline=token(token_ids(baseline.rounds[0][index])),
        model=token(token_ids(variant.rounds[0][index])),
    )


def _gap(baseline: ComparedVariant, variant: ComparedVariant, index: int) -> float | None:
    ours, theirs = variant.mean_logprobs[index], baseline.mean_logprobs[index]
    return None if ours is None or theirs is None else ours - theirs


def _control(comparison: Comparison) -> ControlView | None:
    if comparison.control is None:
        return None
    rounds = zip(comparison.baseline.rounds, comparison.control.rounds, strict=True)
    pairs = [pair for of_round in rounds for pair in zip(*of_round, strict=True)]
    agreements = [token_agreement(token_ids(one), token_ids(other)).share for one, other in pairs]
    of_control = speedups(comparison, comparison.control)
    return view_of(ControlView, of_control, agreement=fmean(agreements))


def _result(comparison: Comparison, variant: ComparedVariant) -> ComparedModelView:
    baseline = comparison.baseline
    indices = range(len(baseline.rounds[0]))
    gaps = [gap for index in indices if (gap := _gap(baseline, variant, index)) is not None]
    return view_of(
        ComparedModelView,
        speedups(comparison, variant),
        model=variant.served.entry.name,
        agreement=fmean(_agreement(baseline, variant, index).share for index in indices),
        logprob_gap=fmean(gaps) if gaps else None,
        kernels=kernel_names(variant.kernels),
    )


def engine_view(served: Served) -> EngineView:
    if isinstance(served, ServedElsewhere) and served.vllm is not None:
        vllm = served.vllm
        return EngineView(name="vllm", version=vllm.version, arguments=list(vllm.args))
    return EngineView(name="own", version=version("sleb-serve"), arguments=[])
