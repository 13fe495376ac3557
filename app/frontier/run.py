"""One measurement of the frontier: quality first, then speeds for what may still be taken."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.bench.bench import stored_subject
from app.bench.plan import AGAIN, DENSE
from app.bench.result import facts_of
from app.bench.runs import OwnRuns
from app.engine.engine import Engine
from app.engine.running.cuda_graphs import no_recorder
from app.engine.variant import Variant
from app.frontier.candidates import Candidates, MayBeTaken, measure_int8, with_speeds
from app.frontier.loads import plans_of, streams_of
from app.frontier.speeds import DENSE_MODEL, Open, Speeds, measure_speeds
from app.frontier.tasks import TaskPlan, measure_tasks
from app.models.candidates import NotDense
from app.models.catalog import Catalog
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.config import Settings
from pruning.evaluation.frontier import FrontierVerdict, judge
from pruning.evaluation.limits import Limits
from pruning.evaluation.points import Load, Point
from pruning.evaluation.verdict import Verdict
from pruning.models.store import ModelStore
from pruning.storage.checkpoints import current_checkpoints

logger = logging.getLogger(__name__)

QUALITY_SHARE = 0.25  # of the time, at most, before tasks are asked
TASK_SHARE = 0.5  # of the time, at most, before speeds are measured
_ANY_LENGTH = 1 << 20


@dataclass(frozen=True)
class Asked:
    """What `sleb frontier` was asked for."""

    model: str
    loads: str
    limits: Limits
    max_minutes: float
    price_per_hour: float | None = None
    tasks: TaskPlan = field(default_factory=TaskPlan)

    def __post_init__(self) -> None:
        if "+" in self.model or "@" in self.model:
            raise NotDense(self.model)
        plans_of(self.loads, _ANY_LENGTH)


@dataclass(frozen=True)
class Frontier:
    """The candidates of a model as measured now, and what to take of them."""

    asked: Asked
    verdict: FrontierVerdict
    weight_bytes: Mapping[Measurand, int]  # if loaded alone
    prices: Mapping[Measurand, float]  # of a million tokens, at the load of the most streams
    priced_at: Load | None
    left_out: Sequence[str]  # int8 weights of depths that lose too much without them
    is_cut_short: bool
    facts: Mapping[str, Any]


def measure_frontier(
    asked: Asked, settings: Settings, say: Callable[[str], object] = lambda _what: None
) -> Frontier:
    """Measure, and keep what was measured in the data directory. Calls ``say`` with each step.

    Raises what ``stored_subject`` raises, and ``TaskUnusable``.
    """
    began_s, limit_s = time.monotonic(), 60 * asked.max_minutes
    candidates = Candidates.of(asked.model, _catalog(settings), asked.limits)
    subject = stored_subject(asked.model, candidates.loaded, "auto", settings)
    sides = subject.sides()
    has_all_answers = _measure_quality(asked, candidates, sides, settings, began_s, say)
    points = [*candidates.points(_catalog(settings))]
    plans = plans_of(asked.loads, subject.dense.max_model_len)
    first, later = _split(points, candidates.sides(), asked.limits)
    timed = {side: sides[side] for side in (DENSE, AGAIN, *candidates.sides().values())}
    say("Compiling and timing kernels")
    Engine(tuner=subject.tuner, recorder=no_recorder).kernels.finish(*timed.values())
    speeds = Speeds(plans, first), Speeds(plans, later)
    may_be_taken: tuple[Open, Open] = (MayBeTaken(points, asked.limits), lambda _known: ())
    for of, is_open in zip(speeds, may_be_taken, strict=True):
        measure_speeds(
            of,
            OwnRuns(timed, subject.tuner).measure,
            is_open,
            began_s + limit_s,
            lambda load, pairs: say(f"Measuring {load.words.partition(' ')[2]}, turn {pairs + 1}"),
        )
        for load in plans:
            _keep(asked.model, of.firm(load), settings)
    found = _frontier(asked, points, speeds, timed, candidates.left_out)
    return found if has_all_answers else replace(found, is_cut_short=True)


def _measure_quality(
    asked: Asked,
    candidates: Candidates,
    sides: Mapping[str, Variant],
    settings: Settings,
    began_s: float,
    say: Callable[[str], object],
) -> bool:
    """Perplexities of int8 weights, then tasks. Returns whether all tasks were asked."""
    until_s = [began_s + share * 60 * asked.max_minutes for share in (QUALITY_SHARE, TASK_SHARE)]
    measure_int8(candidates, sides, settings, asked.limits, until_s[0], say)
    catalog = _catalog(settings)
    entries = candidates.may_be_taken(catalog, asked.limits)
    return measure_tasks(
        asked.model, asked.tasks, entries, sides, catalog, settings, until_s[1], say
    )


def _keep(model: str, firm: Mapping[Measurand, MeasuredSpeedup], settings: Settings) -> None:
    """A disk that is full costs no verdict."""
    try:
        MeasuredSpeedups(settings.data_dir).record(model, firm)
    except OSError as error:
        logger.warning("speed-ups of %s are not kept: %s", model, error)


def _split(
    points: Sequence[Point], sides: Mapping[Measurand, str], limits: Limits
) -> tuple[dict[Measurand, str], dict[Measurand, str]]:
    """The sides that may be taken, which are timed first, and those that lose too much."""
    open_ones = {
        Measurand(point.num_removed, point.is_int8)
        for point in points
        if limits.quality(point.ratios) is not Verdict.EXCEEDED
    }
    first = {what: side for what, side in sides.items() if what in open_ones}
    return first, {what: side for what, side in sides.items() if what not in open_ones}


def _catalog(settings: Settings) -> Catalog:
    return Catalog(
        ModelStore(settings.models_dir),
        current_checkpoints(settings),
        qualities=MeasuredQualities(settings.data_dir),
    )


def _frontier(
    asked: Asked,
    points: Sequence[Point],
    speeds: tuple[Speeds, Speeds],
    timed: Mapping[str, Variant],
    left_out: Sequence[str],
) -> Frontier:
    first, later = speeds
    loads = [*first.plans]
    known = with_speeds(
        points, {load: {**later.intervals(load), **first.intervals(load)} for load in loads}
    )
    sides = {DENSE_MODEL: DENSE, **first.sides, **later.sides}
    at = streams_of(loads)
    prices = {} if at is None else {**_prices(asked, later, at), **_prices(asked, first, at)}
    return Frontier(
        asked,
        judge(asked.model, known, loads, asked.limits),
        {what: _weight_bytes(timed[side]) for what, side in sides.items()},
        prices,
        at,
        tuple(left_out),
        first.is_cut_short or later.is_cut_short,
        facts_of("auto"),
    )


def _weight_bytes(variant: Variant) -> int:
    """Tied ones count once."""
    return sum(parameter.nbytes for parameter in variant.model.parameters())


def _prices(asked: Asked, speeds: Speeds, at: Load) -> dict[Measurand, float]:
    if asked.price_per_hour is None:
        return {}
    rates = {what: speeds.tokens_per_s(at, what) for what in (DENSE_MODEL, *speeds.sides)}
    return {what: asked.price_per_hour / 3600 / rate * 1e6 for what, rate in rates.items() if rate}


def to_wire(frontier: Frontier) -> dict[str, Any]:
    """All results as JSON values."""
    asked, verdict = frontier.asked, frontier.verdict
    return {
        "object": "frontier",
        "model": asked.model,
        "limits": asdict(asked.limits),
        "sentence": verdict.sentence,
        "taken": dict(verdict.taken),
        "next_step": verdict.next_step and asdict(verdict.next_step),
        "undecided": list(verdict.undecided),
        "left_out": list(frontier.left_out),
        "is_cut_short": frontier.is_cut_short,
        "price_per_hour": asked.price_per_hour,
        "priced_at": frontier.priced_at and frontier.priced_at.name,
        "loads": {load.name: load.words for load in verdict.loads},
        "points": [_point(frontier, one.point) for one in verdict.candidates],
        **frontier.facts,
    }


def _point(frontier: Frontier, point: Point) -> dict[str, Any]:
    what = Measurand(point.num_removed, point.is_int8)
    return {
        "name": point.name,
        "num_removed": point.num_removed,
        "is_int8": point.is_int8,
        "is_healed": point.is_healed,
        "ratios": {} if point.is_dense else dict(point.ratios),
        "worst": point.worst,
        "speeds": dict(point.speeds),
        "tasks": point.tasks,
        "weight_bytes": frontier.weight_bytes.get(what),
        "price_per_million_tokens": frontier.prices.get(what),
        "is_on_frontier": point.name in frontier.verdict.frontier,
        "limit": frontier.asked.limits.quality(point.ratios).value,
    }
