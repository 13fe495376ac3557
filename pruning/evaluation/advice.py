"""Which depth of a model to take: the fastest one that keeps the limits, in a sentence and a table.

A measured speed-up counts before a predicted one, and the end of an interval before its value: a
depth is taken only if its numbers show that it keeps the limits. Imports no torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pruning.evaluation.quality import Interval
from pruning.evaluation.results import ProbeComparison
from pruning.evaluation.verdict import Verdict
from pruning.spec import refused


@dataclass(frozen=True)
class Limits:
    """What a pruned model has to keep to be worth taking."""

    max_ratio: float = 1.05  # of perplexity to the dense model's, on the worst domain
    min_speedup: float = 1.1  # time per token, dense / pruned
    min_probe: float | None = None  # score of the probe, 0 to 1

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_ratio", self.max_ratio, 1.0),
            ("min_speedup", self.min_speedup, 1.0),
        ):
            if not low <= value < math.inf:  # false for NaN
                raise refused(name, value, f"a finite number, {low:g} or more")
        if self.min_probe is not None and not 0 <= self.min_probe <= 1:
            raise refused("min_probe", self.min_probe, "0 to 1")

    def __str__(self) -> str:
        probe = (
            "" if self.min_probe is None else f", and a probe score of at least {self.min_probe:g}"
        )
        return (
            f"at most {self.max_ratio:g} × the dense perplexity on every text, a speed-up "
            f"of at least {self.min_speedup:g} ×{probe}"
        )


@dataclass(frozen=True)
class Candidate:
    """A pruned model that can be served, and what is known of it."""

    name: str
    num_removed: int
    num_blocks: int  # that remain
    speedup: Interval | None  # time per token, dense / pruned; without ends if it is predicted
    is_measured: bool  # the speed-up
    ratios: Mapping[str, Interval] = field(default_factory=dict)  # of perplexity, by domain
    parameters: float | None = None  # divided by those of the dense model
    probe: ProbeComparison | None = None

    @property
    def short_name(self) -> str:
        """The name without that of the model."""
        _, at, variant = self.name.partition("@")
        return at + variant or self.name


@dataclass(frozen=True)
class AdvisedDepth:
    """A candidate with what the limits say of it: ``because`` is empty if it keeps them all.

    ``failing`` are the names of what it does not keep: ``speed``, ``quality``, a domain, ``probe``.
    """

    candidate: Candidate
    verdict: Verdict
    because: str = ""
    failing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """``taken`` is the name of the model to take. None: no depth is shown to keep the limits.

    ``nearest`` is then the one that the sentence describes, unless there is none at all.
    """

    model: str
    limits: Limits
    taken: str | None
    nearest: str | None
    sentence: str
    depths: tuple[AdvisedDepth, ...]  # the least pruned first
    missing: tuple[str, ...]  # what is not known, with the command that measures it


_Finding = tuple[Verdict, str, str]  # the name of what is not kept, and why


def advise(model: str, candidates: Sequence[Candidate], limits: Limits) -> Advice:
    """The advice for the dense ``model``, among these pruned ones."""
    ordered = sorted(candidates, key=lambda one: (one.num_removed, one.name))
    depths = tuple(_judged(candidate, limits) for candidate in ordered)
    kept = [depth for depth in depths if depth.verdict is Verdict.KEPT]
    best = max(kept, key=_rank, default=None)
    nearest = None if best else _nearest(depths, limits)
    sentence = f"{model} has no pruned variants yet."
    if best is not None:
        take = f"Use {best.candidate.name}: {described(best.candidate)}."
        sentence = f"{take} {_deeper(best, depths)}".strip()
    elif nearest is not None:
        sentence = _none(model, nearest, len(depths), limits)
    return Advice(
        model=model,
        limits=limits,
        taken=best.candidate.name if best else None,
        nearest=nearest.candidate.name if nearest else None,
        sentence=sentence,
        depths=depths,
        missing=tuple(_missing(model, depths, best, limits)),
    )


def _nearest(depths: Sequence[AdvisedDepth], limits: Limits) -> AdvisedDepth | None:
    """The best of those that are fast enough, else the deepest."""
    fast_enough = [
        depth
        for depth in depths
        if depth.candidate.speedup and depth.candidate.speedup.value >= limits.min_speedup
    ]
    return min(fast_enough or depths[-1:], key=_cost, default=None)


def _rank(depth: AdvisedDepth) -> tuple[int, float]:
    """More blocks removed first: all of a depth are as fast. Then the better quality."""
    return depth.candidate.num_removed, -_cost(depth)


def _judged(candidate: Candidate, limits: Limits) -> AdvisedDepth:
    findings = list(_findings(candidate, limits))
    for verdict in (Verdict.EXCEEDED, Verdict.UNDECIDED):
        if failing := {what: reason for of, what, reason in findings if of is verdict}:
            return AdvisedDepth(candidate, verdict, "; ".join(failing.values()), tuple(failing))
    return AdvisedDepth(candidate, Verdict.KEPT)


def _findings(candidate: Candidate, limits: Limits) -> Iterator[_Finding]:
    """Every limit that is not kept, or not known to be."""
    speedup = candidate.speedup
    if speedup is None:
        yield Verdict.UNDECIDED, "speed", "its speed-up is unknown"
    elif (verdict := Verdict.at_least(speedup, limits.min_speedup)) is not Verdict.KEPT:
        yield verdict, "speed", _reason(verdict, "speed", speedup, limits.min_speedup)
    if not candidate.ratios:
        yield Verdict.UNDECIDED, "quality", "its quality is not measured"
    for domain, ratio in candidate.ratios.items():
        verdict = Verdict.of(ratio, limits.max_ratio)
        if ratio.low is None and verdict is Verdict.KEPT:
            verdict = Verdict.UNDECIDED
        if verdict is not Verdict.KEPT:
            yield verdict, domain, _reason(verdict, domain, ratio, limits.max_ratio)
    if limits.min_probe is not None:
        yield from _of_probe(candidate.probe, limits.min_probe)


def _of_probe(probe: ProbeComparison | None, least: float) -> Iterator[_Finding]:
    if probe is None:
        yield Verdict.UNDECIDED, "probe", "its probe score is not measured"
    elif probe.pruned.score < least:
        yield Verdict.EXCEEDED, "probe", f"probe score {probe.pruned.score:.2f} is below {least:g}"


def _reason(verdict: Verdict, of: str, interval: Interval, limit: float) -> str:
    side = "undecided at" if verdict is Verdict.UNDECIDED else "beyond"
    side = "below" if verdict is Verdict.EXCEEDED and of == "speed" else side
    return f"{of} {times(interval)} is {side} {limit:g}"


def times(interval: Interval) -> str:
    """A ratio with its interval, in few characters."""
    ends = "" if interval.low is None else f" ({interval.low:.2f} to {interval.high:.2f})"
    return f"{interval.value:.2f} ×{ends}"


def described(candidate: Candidate) -> str:
    """Speed, size, quality on each text and the probe, as far as they are known."""
    parts = [_speed(candidate)]
    if candidate.parameters is not None:
        parts[0] += f", {100 * (1 - candidate.parameters):.0f} % fewer parameters"
    if candidate.ratios:
        texts = ", ".join(f"{name} {times(ratio)}" for name, ratio in candidate.ratios.items())
        parts.append(f"perplexity on {texts} relative to the dense model")
    if (probe := candidate.probe) is not None:
        parts.append(f"probe score {probe.pruned.score:.2f} (dense {probe.dense.score:.2f})")
    return "; ".join(parts)


def _speed(candidate: Candidate) -> str:
    speedup = candidate.speedup
    if speedup is None:
        return "its speed-up is unknown"
    how = "measured" if candidate.is_measured else "predicted"
    ends = "" if speedup.low is None else f", {speedup.low:.2f} to {speedup.high:.2f}"
    return f"{speedup.value:.2f} × as fast per token ({how}{ends})"


def _deeper(best: AdvisedDepth, depths: Sequence[AdvisedDepth]) -> str:
    """What the next depth would give, and why it is not taken. Nothing at the last depth."""
    next_ones = [
        depth for depth in depths if depth.candidate.num_removed > best.candidate.num_removed
    ]
    if not next_ones:
        return ""
    deeper = min(next_ones, key=lambda depth: (depth.candidate.num_removed, _cost(depth)))
    gain = ""
    if deeper.candidate.speedup is not None and best.candidate.speedup is not None:
        more = deeper.candidate.speedup.value - best.candidate.speedup.value
        gain = f" would be another {more:.2f} × faster, but"
    return f"Not deeper: {deeper.candidate.short_name}{gain or ':'} {deeper.because}."


def _cost(depth: AdvisedDepth) -> float:
    """The ratio of the domain that lost most."""
    return max((ratio.value for ratio in depth.candidate.ratios.values()), default=math.inf)


_NOT = {Verdict.EXCEEDED: "does not meet", Verdict.UNDECIDED: "is not shown to meet"}


def _none(model: str, nearest: AdvisedDepth, num_depths: int, limits: Limits) -> str:
    if num_depths > 1:
        none = f"None of the {num_depths} depths of {model} is shown to meet the limits ({limits})."
        nearest_one = f"The closest is {nearest.candidate.short_name}"
    else:
        none = f"The only known depth of {model} is not shown to meet the limits ({limits})."
        nearest_one = f"It is {nearest.candidate.short_name}"
    return (
        f"{none} {nearest_one}: {described(nearest.candidate)}. It "
        f"{_NOT[nearest.verdict]} the limit on {', '.join(nearest.failing)}."
    )


def _missing(
    model: str, depths: Sequence[AdvisedDepth], best: AdvisedDepth | None, limits: Limits
) -> Iterator[str]:
    if not depths:
        yield f"no pruned model: run `sleb prune {model} --num-remove 6`"
        return
    looked_at = [best.candidate] if best else [depth.candidate for depth in depths]
    open_ones = [one.candidate for one in depths if one.verdict is Verdict.UNDECIDED]
    if predicted := [one for one in looked_at if not one.is_measured]:
        bench = _bench(model, predicted)
        yield f"the speed-up is predicted, not measured: run {bench}"
    if vague := [one for one in open_ones if best is None and _is_vague(one, limits)]:
        names, bench = ", ".join(one.short_name for one in vague), _bench(model, vague)
        yield f"the speed-up of {names} is too uncertain: run {bench}"
    if any(not one.ratios for one in looked_at):
        yield (
            f"the quality on held-out text is not measured: run `sleb eval {looked_at[-1].name}`"
        )
    if any(ratio.low is None for one in looked_at for ratio in one.ratios.values()):
        yield (
            "intervals are unknown, because there were too few windows: prune again with "
            "the default evaluation"
        )
    if limits.min_probe is not None and any(one.probe is None for one in looked_at):
        name = looked_at[-1].name
        yield (
            f"the probe score of some depths is not measured: run `sleb eval {name} --tasks probe`"
        )


def _is_vague(candidate: Candidate, limits: Limits) -> bool:
    """Whether a measured speed-up may be above or below its limit."""
    speedup = candidate.speedup
    if speedup is None or not candidate.is_measured:
        return False
    return Verdict.at_least(speedup, limits.min_speedup) is Verdict.UNDECIDED


def _bench(model: str, candidates: Sequence[Candidate]) -> str:
    variants = ",".join(one.short_name for one in candidates if one.short_name.startswith("@-"))
    return f"`sleb bench {model} --variants {variants}`" if variants else f"`sleb bench {model}`"


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
    yield "-" if candidate.speedup is None else f"{_in_cell(candidate.speedup)}{how}"
    for domain in domains:
        ratio = candidate.ratios.get(domain)
        yield "-" if ratio is None else _in_cell(ratio)
    if has_probe:
        probe = candidate.probe
        yield f"{probe.pruned.score:.2f} of {probe.dense.score:.2f}" if probe else "-"
    words = {Verdict.KEPT: "yes", Verdict.EXCEEDED: "no: ", Verdict.UNDECIDED: "open: "}
    yield words[depth.verdict] + ", ".join(depth.failing)


def _in_cell(interval: Interval) -> str:
    ends = "" if interval.low is None else f" ({interval.low:.2f}-{interval.high:.2f})"
    return f"{interval.value:.2f}{ends}"
