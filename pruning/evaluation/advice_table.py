"""The table of an advice, for a terminal and for the card of a checkpoint."""

from collections.abc import Iterator

from pruning.evaluation.advice import Advice, AdvisedDepth, times
from pruning.evaluation.verdict import Verdict

_NONE = "-"


def advice_table(advice: Advice) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each depth. The one to take is marked in the first column."""
    domains = list(dict.fromkeys(name for one in advice.depths for name in one.candidate.ratios))
    has_probe = any(depth.candidate.probe for depth in advice.depths)
    headings = ("take", "depth", "blocks", "speed-up", *domains)
    headings = (*headings, "probe", "verdict") if has_probe else (*headings, "verdict")
    return headings, [
        tuple(_cells(depth, advice.taken, domains, has_probe=has_probe)) for depth in advice.depths
    ]


def _cells(
    depth: AdvisedDepth, taken: str | None, domains: list[str], *, has_probe: bool
) -> Iterator[str]:
    candidate = depth.candidate
    yield "→" if candidate.name == taken else ""
    yield candidate.short_name
    yield str(candidate.num_blocks)
    how = "" if candidate.is_measured else ", predicted"
    yield _NONE if candidate.speedup is None else f"{times(candidate.speedup)}{how}"
    for domain in domains:
        ratio = candidate.ratios.get(domain)
        yield _NONE if ratio is None else times(ratio)
    if has_probe:
        probe = candidate.probe
        yield f"{probe.pruned.score:.2f} of {probe.dense.score:.2f}" if probe else _NONE
    yield "keeps the limits" if depth.verdict is Verdict.KEPT else depth.because
