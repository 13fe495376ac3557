"""The response body of an advice."""

from dataclasses import asdict

from app.api.schemas.advice import AdviceView, AdvisedDepthView, EstimateWithEnds, LimitsView
from pruning.evaluation.advice import Advice, AdvisedDepth
from pruning.evaluation.quality import Interval


def advice_view(advice: Advice) -> AdviceView:
    return AdviceView(
        model=advice.model,
        limits=LimitsView(**asdict(advice.limits)),
        taken=advice.taken,
        nearest=advice.nearest,
        sentence=advice.sentence,
        depths=[_depth_view(depth) for depth in advice.depths],
        missing=list(advice.missing),
    )


def _depth_view(depth: AdvisedDepth) -> AdvisedDepthView:
    candidate = depth.candidate
    probe = candidate.probe
    return AdvisedDepthView(
        name=candidate.name,
        short_name=candidate.short_name,
        num_removed=candidate.num_removed,
        num_blocks=candidate.num_blocks,
        speedup=_interval_view(candidate.speedup) if candidate.speedup else None,
        is_measured=candidate.is_measured,
        ratios={name: _interval_view(ratio) for name, ratio in candidate.ratios.items()},
        parameters=candidate.parameters,
        probe_score=probe.pruned.score if probe else None,
        dense_probe_score=probe.dense.score if probe else None,
        verdict=depth.verdict.value,
        failing=list(depth.failing),
        because=depth.because,
    )


def _interval_view(interval: Interval) -> EstimateWithEnds:
    return EstimateWithEnds(value=interval.value, low=interval.low, high=interval.high)
