"""The verdict about a model from what is known of its candidates, without measuring anything."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.models.candidates import NotDense, dense_point, int8_forms, point_of, pruned_variants
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from app.models.loads import load_of, order_of
from app.models.measured_speedups import ONE_STREAM, MeasuredSpeedup
from pruning.evaluation.frontier import PROD, PROD_PATH, FrontierVerdict, NextStep, judge
from pruning.evaluation.limits import Limits
from pruning.evaluation.points import Load, Point
from pruning.evaluation.quality import Interval
from pruning.spec import InvalidSpec

_PER_TOKEN = Load(ONE_STREAM, "per token")  # where not all that is known is of one stream


class LoadNotMeasured(InvalidSpec):
    """No candidate was measured at the load that is asked for."""

    def __init__(self, load: str, model: str, known: Sequence[Load]) -> None:
        names = ", ".join(each.name for each in known)
        super().__init__(
            "load",
            f"nothing of {model} was measured at the load {load[:32]}; known loads: {names}. "
            "`sleb frontier` measures others with --loads",
        )


def advice_on(
    name: str, catalog: Catalog, limits: Limits, load: str | None = None
) -> FrontierVerdict:
    """What to take of a dense model, or of that of an alias, first at ``load`` if it is given.

    Raises ``NotDense``, ``LoadNotMeasured``, ``UnknownModel`` and ``JobStoreUnavailable``.
    """
    model, is_here = dense_model(name, catalog)
    known = [_Known.of(entry, catalog) for entry in _entries(model, catalog)]
    loads, share = _loads(known), _share_of_predicted(known)
    if load is not None:
        if load not in {each.name for each in loads}:
            raise LoadNotMeasured(load, model, loads)
        loads.sort(key=lambda each: each.name != load)
    candidates = [one.point(catalog, share) for one in known]
    timed = {load for point in candidates for load in point.speeds}
    dense = replace(dense_point(model), speeds={load: Interval(1.0, 1.0, 1.0) for load in timed})
    verdict = judge(model, [dense, *candidates], loads, limits)
    if not is_here:
        return replace(verdict, next_step=_restored(model))
    return replace(verdict, next_step=None) if _is_served(verdict, catalog) else verdict


def dense_model(name: str, catalog: Catalog) -> tuple[str, bool]:
    """The dense model, and whether it is here: its checkpoints can be without it.

    Raises ``NotDense``, ``UnknownModel`` and ``JobStoreUnavailable``.
    """
    try:
        entry = catalog.resolve(name)
    except UnknownModel:
        if not pruned_variants(name, catalog):
            raise
        return name, False
    if (entry.is_pruned or entry.is_int8) and not catalog.is_alias(name):
        raise NotDense(name)
    return entry.base, entry.external is not None or entry.base in catalog.dense_names()


def _is_served(verdict: FrontierVerdict, catalog: Catalog) -> bool:
    """Whether the next step is to serve a variant as prod, and that is done."""
    request = verdict.next_step and verdict.next_step.request
    if not request or request.path != PROD_PATH:
        return False
    return catalog.aliases().get(PROD) == catalog.resolve(str(request.body["target"])).pinned_name


def _restored(model: str) -> NextStep:
    return NextStep(
        "add the dense model again, without which nothing can be measured",
        f"sleb models add SOURCE --name {model}",
    )


def _entries(model: str, catalog: Catalog) -> list[ModelEntry]:
    """Int8 of the dense model, all depths, and int8 of those that were measured."""
    int8 = [
        entry
        for entry in int8_forms(model, catalog)
        if not entry.num_removed or catalog.measured_speedups(entry) or catalog.ratios(entry)
    ]
    found = [*int8, *pruned_variants(model, catalog)]
    return sorted(found, key=lambda entry: (entry.num_removed, entry.is_int8, entry.name))


@dataclass(frozen=True)
class _Known:
    """A candidate, and the speeds that were measured of it by load."""

    entry: ModelEntry
    speeds: dict[str, MeasuredSpeedup]
    main: MeasuredSpeedup | None  # of one stream, else of a benchmark or a comparison

    @classmethod
    def of(cls, entry: ModelEntry, catalog: Catalog) -> "_Known":
        speeds = catalog.measured_speedups(entry)
        return cls(entry, dict(speeds), catalog.measured_speedup(entry))

    def point(self, catalog: Catalog, share: float) -> Point:
        """``share`` is that of the predicted savings which are believed."""
        speeds = {load: each.interval for load, each in self.speeds.items() if load}
        predicted = self.entry.predicted_speedup
        is_predicted = self.main is None and predicted is not None
        if self.main is not None:
            speeds[ONE_STREAM] = self.main.interval
        elif predicted is not None:
            speeds[ONE_STREAM] = Interval(1 / (1 - share * _saved(predicted)), None, None)
        point = point_of(self.entry, catalog)
        return replace(point, speeds=speeds, predicted=(ONE_STREAM,) if is_predicted else ())


def _loads(known: Sequence[_Known]) -> list[Load]:
    """Where something was measured, and first what is predicted otherwise."""
    main = [one.main for one in known if one.main is not None]
    is_stream = main and all(each.scenario == ONE_STREAM for each in main)
    others = {load for one in known for load in one.speeds} - {"", ONE_STREAM}
    first = load_of(ONE_STREAM) if is_stream else _PER_TOKEN
    return [first, *map(load_of, sorted(others, key=order_of))]


def _share_of_predicted(known: Sequence[_Known]) -> float:
    """How much of the time that depths were predicted to save the measured ones save, at most 1.

    Otherwise a depth that was not measured would be preferred for a prediction that is too high.
    """
    saved = wanted = 0.0
    for one in known:
        predicted = one.entry.predicted_speedup
        if one.main is not None and predicted is not None:
            saved += _saved(one.main.ratio)
            wanted += _saved(predicted)
    return min(1.0, max(0.0, saved / wanted)) if wanted > 0 else 1.0


def _saved(speedup: float) -> float:
    """The share of the time of a token that a speed-up saves."""
    return 1 - 1 / speedup
