"""A comparison on the wire."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from asgi_correlation_id import correlation_id

from app.api.formats.generate import timings_view
from app.api.schemas.compare import (
    ComparedModelView,
    ComparedOutputView,
    ComparedPromptView,
    CompareView,
    DivergenceView,
    SpeedupView,
    TokenTextView,
)
from app.compare.compare import Agreement, Comparison, Side, agreement, speedups, token_ids
from app.compare.speedup import Speedup
from app.generation.output import Vocabulary


def compare_view(comparison: Comparison) -> CompareView:
    sides, baseline = comparison.sides, comparison.baseline
    return CompareView(
        id=correlation_id.get() or "",
        created_at=time.time(),
        models=[side.served.entry.name for side in sides],
        baseline=baseline.served.entry.name,
        repeats=len(baseline.rounds),
        seed=comparison.seed,
        prompts=[
            ComparedPromptView(
                index=index,
                prompt_tokens=output.num_prompt_tokens,
                outputs=[_output(baseline, side, index) for side in sides],
            )
            for index, output in enumerate(baseline.rounds[0])
        ],
        results=[_result(baseline, side) for side in sides if side is not baseline],
    )


def _output(baseline: Side, side: Side, index: int) -> ComparedOutputView:
    output = side.rounds[0][index]
    found = _agreement(baseline, side, index)
    return ComparedOutputView(
        model=side.served.entry.name,
        variant=side.served.entry.kind,
        text=output.text,
        finish_reason=output.finish_reason.value,
        completion_tokens=output.num_tokens,
        timings=[timings_view(answers[index].timings) for answers in side.rounds],
        agreement=found.share,
        first_divergence=_divergence(baseline, side, index, found.first_divergence),
        mean_logprob=side.mean_logprobs[index],
        logprob_gap=_gap(baseline, side, index),
    )


def _agreement(baseline: Side, side: Side, index: int) -> Agreement:
    return agreement(token_ids(baseline.rounds[0][index]), token_ids(side.rounds[0][index]))


def _divergence(
    baseline: Side, side: Side, index: int, position: int | None
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
        model=token(token_ids(side.rounds[0][index])),
    )


def _gap(baseline: Side, side: Side, index: int) -> float | None:
    ours, theirs = side.mean_logprobs[index], baseline.mean_logprobs[index]
    return None if ours is None or theirs is None else ours - theirs


def _result(baseline: Side, side: Side) -> ComparedModelView:
    indices = range(len(baseline.rounds[0]))
    gaps = [gap for index in indices if (gap := _gap(baseline, side, index)) is not None]
    found = speedups(baseline, side)
    return ComparedModelView(
        model=side.served.entry.name,
        agreement=fmean(_agreement(baseline, side, index).share for index in indices),
        logprob_gap=fmean(gaps) if gaps else None,
        tpot=_speedup(found.tpot),
        ttft=_speedup(found.ttft),
        e2e=_speedup(found.e2e),
    )


def _speedup(found: Speedup | None) -> SpeedupView | None:
    if found is None:
        return None
    return SpeedupView.model_validate(
        {name: value for name, value in asdict(found).items() if name != "num_pairs"}
    )
