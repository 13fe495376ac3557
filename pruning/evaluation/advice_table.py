"""The table of an advice, for a terminal and for the card of a checkpoint."""

from collections.abc import Iterator

from pruning.evaluation.advice import Advice, AdvisedDepth
from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict

_NONE = "-"


def advice_table(advice: Advice) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each depth. An arrow marks what to take, a star what is predicted."""
    domains = list(dict.fromkeys(name for one in advice.depths for name in one.candidate.ratios))
    has_probe = any(depth.candidate.probe for depth in advice.depths)
    headings = ("depth", "speed-up", *domains)
    headings = (*headings, "probe", "keeps") if has_probe else (*headings, "keeps")
    return headings, [
        tuple(_cells(depth, advice.taken, domains, has_probe=has_probe)) for depth in advice.depths
    ]


def _cells(
    depth: AdvisedDepth, taken: str | None, domains: list[str], *, has_probe: bool
) -> Iterator[str]:
    candidate = depth.candidate
    yield f"→ {candidate.short_name}" if candidate.name == taken else candidate.short_name
    how = "" if candidate.is_measured else "*"
    yield _NONE if candidate.speedup is None else f"{_short(candidate.speedup)}{how}"
    for domain in domains:
        ratio = candidate.ratios.get(domain)
        yield _NONE if ratio is None else _short(ratio)
    if has_probe:
        probe = candidate.probe
        yield f"{probe.pruned.score:.2f} of {probe.dense.score:.2f}" if probe else _NONE
    words = {Verdict.KEPT: "yes", Verdict.EXCEEDED: "no: ", Verdict.UNDECIDED: "open: "}
    yield words[depth.verdict] + ", ".join(depth.failing)


def _short(interval: Interval) -> str:
    ends = "" if interval.low is None else f" ({interval.low:.2f}-{interval.high:.2f})"
    return f"{interval.value:.2f}{ends}"
