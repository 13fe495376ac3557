"""The response body of advice, which ``sleb advise --json`` prints too. Imports no torch."""

from app.api.schemas.advice import AdviceView, AdvisedDepthView, LoadView
from app.api.schemas.bodies import view_of
from pruning.evaluation.frontier import FrontierVerdict, Judged


def advice_view(verdict: FrontierVerdict) -> AdviceView:
    return view_of(
        AdviceView,
        verdict,
        loads=[
            view_of(LoadView, load, taken=verdict.taken_at(load.name)) for load in verdict.loads
        ],
        taken=verdict.taken_at(verdict.loads[0].name),
        depths=[
            _depth_view(one, verdict.loads[0].name)
            for one in verdict.candidates
            if not one.point.is_dense
        ],
    )


def _depth_view(one: Judged, load: str) -> AdvisedDepthView:
    """Its speed-up is that at this load."""
    point, judgement = one.point, one.judgement
    probe = point.probe
    return view_of(
        AdvisedDepthView,
        point,
        speedup=point.speeds.get(load),
        is_measured=load in point.speeds and load not in point.predicted,
        probe_score=probe.pruned.score if probe else None,
        dense_probe_score=probe.dense.score if probe else None,
        verdict=judgement.verdict.value,
        failing=judgement.failing,
        because=judgement.because,
    )
