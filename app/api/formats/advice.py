"""The response body of advice, which ``sleb advise --json`` prints too. Imports no torch."""

from app.api.schemas.advice import AdviceView, AdvisedDepthView
from app.api.schemas.bodies import view_of
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
