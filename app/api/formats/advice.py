"""The response body of an advice."""

from app.api.formats.same_names import view_of
from app.api.schemas.advice import AdviceView, AdvisedDepthView
from pruning.evaluation.advice import Advice, AdvisedDepth


def advice_view(advice: Advice) -> AdviceView:
    return view_of(AdviceView, advice, depths=[_depth_view(depth) for depth in advice.depths])


def _depth_view(depth: AdvisedDepth) -> AdvisedDepthView:
    candidate = depth.candidate
    probe = candidate.probe
    return view_of(
        AdvisedDepthView,
        candidate,
        probe_score=probe.pruned.score if probe else None,
        dense_probe_score=probe.dense.score if probe else None,
        verdict=depth.verdict.value,
        failing=depth.failing,
        because=depth.because,
    )
