"""The candidates of a verdict as a table, for a terminal and a model card. Imports no torch."""

from collections.abc import Iterator, Sequence

from pruning.evaluation.frontier import FrontierVerdict, Judged
from pruning.evaluation.points import Load, Point
from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict

_KEEPS = {Verdict.KEPT: "yes", Verdict.EXCEEDED: "no: ", Verdict.UNDECIDED: "open: "}
MODEL, KEEPS = "model", "keeps"  # headings of columns of words


def verdict_table(verdict: FrontierVerdict) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each candidate."""
    points = [one.point for one in verdict.candidates]
    known = {
        "probe": any(point.probe for point in points),
        "tasks": any(point.tasks for point in points),
        "worst": any(point.tasks for point in points),
    }
    measures = [name for name, is_known in known.items() if is_known]
    loads = (load.name for load in verdict.loads)
    headings = ("", MODEL, *loads, "perplexity", *measures, KEEPS)
    return headings, [tuple(_cells(verdict, one, measures)) for one in verdict.candidates]


def _cells(verdict: FrontierVerdict, one: Judged, measures: Sequence[str]) -> Iterator[str]:
    point = one.point
    is_taken = point.name in verdict.taken.values()
    yield "→" if is_taken else "*" if point.name in verdict.frontier else ""
    yield "dense" if point.is_dense else point.short_name
    for load in verdict.loads:
        yield _speed(point, load)
    yield with_reach(point.worst, 3)
    if "probe" in measures:
        yield f"{point.probe.pruned.score:.2f}" if point.probe else "-"
    if "tasks" in measures:
        yield "1.00" if point.is_dense else with_reach(point.tasks.share if point.tasks else None)
    if "worst" in measures:
        yield "1.00" if point.is_dense else with_reach(point.tasks.worst if point.tasks else None)
    keeps = _KEEPS[one.judgement.verdict] + ", ".join(one.judgement.failing)
    yield "" if point.is_dense else keeps


def _speed(point: Point, load: Load) -> str:
    is_predicted = load.name in point.predicted
    return f"{'~' if is_predicted else ''}{with_reach(point.speeds.get(load.name))}"


def with_reach(interval: Interval | None, digits: int = 2) -> str:
    """The value, and how far its interval reaches to each side on average."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.{digits}f}"
    reach = f"{(interval.high - interval.low) / 2:.{digits}f}".removeprefix("0")
    return f"{interval.value:.{digits}f}±{reach}"


def explained(verdict: FrontierVerdict) -> Iterator[str]:
    """What the columns mean."""
    loads = ", ".join(f"{load.name}: {load.words}" for load in verdict.loads)
    yield f"→ to be taken, * on the frontier: no other is surely better; {loads}"
    yield (
        "speeds: times as fast as the dense model, per token or to the first token of a prompt; "
        "~: predicted"
    )
    yield "perplexity: times the dense model's on the text that lost most"
    if any(one.point.tasks for one in verdict.candidates):
        yield "tasks: share of the dense model's accuracy above chance; worst: that of one task"
    yield "±: half of an interval of 95 %"
    yield f"limits: {verdict.limits}"
