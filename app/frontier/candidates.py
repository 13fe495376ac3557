"""The candidates of the frontier, and what they cost in perplexity."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from app.bench.plan import DENSE
from app.engine.variant import Variant
from app.frontier.qualities import measure_qualities, windows_for
from app.models.candidates import dense_point, int8_forms, is_healed, point_of, pruned_variants
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import Measurand
from pruning.config import Settings
from pruning.evaluation.limits import Limits
from pruning.evaluation.points import Load, Point, worst_of
from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict
from pruning.models.names import int8_name
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import LoadedModel, ModelStore, load_tokenizer
from pruning.storage.checkpoints import current_checkpoints


@dataclass(frozen=True)
class Candidates:
    """The published depths of a model, and what can have int8 weights."""

    model: str
    pruned: Sequence[ModelEntry]
    int8: Sequence[ModelEntry]
    within: Sequence[ModelEntry]  # the pruned ones that do not lose too much
    left_out: Sequence[str] = ()  # int8 weights of depths that lose too much without them

    @classmethod
    def of(cls, model: str, catalog: Catalog, limits: Limits) -> "Candidates":
        pruned, int8 = pruned_variants(model, catalog), [*int8_forms(model, catalog)]
        within = _within(pruned, catalog, limits)
        beyond = {int8_name(entry.name) for entry in pruned if entry not in within}
        left_out = [entry.name for entry in int8 if entry.name in beyond]
        rounded = [one for one in int8 if one.name not in beyond]
        return cls(model, pruned, rounded, within, left_out)

    @property
    def loaded(self) -> list[str]:
        """The names of what is timed, and of what may be taken."""
        names = [*(entry.name for entry in (*self.int8, *self.within)), *self.sides().values()]
        return [*dict.fromkeys(names)] or [DENSE]

    def sides(self) -> dict[Measurand, str]:
        """One name for each depth and kind of weights, which are as fast.

        Healed weights are as fast as raw ones, which need no loading.
        """
        sides: dict[Measurand, str] = {}
        for entry in sorted((*self.pruned, *self.int8), key=is_healed):
            name = entry.raw.name if is_healed(entry) else entry.name
            sides.setdefault(Measurand(entry.num_removed, entry.is_int8), name)
        return sides

    def may_be_taken(self, catalog: Catalog, limits: Limits) -> list[ModelEntry]:
        """With what is known by now of int8 weights too, the best perplexity first."""
        within = _within((*self.int8, *self.within), catalog, limits)
        worst = {entry.name: worst_of(catalog.ratios(entry)) for entry in within}
        return sorted(within, key=lambda entry: _value(worst[entry.name]))

    def points(self, catalog: Catalog) -> Iterator[Point]:
        """Without speeds, the dense model first."""
        yield dense_point(self.model)
        yield from (point_of(entry, catalog) for entry in (*self.int8, *self.pruned))


def _within(entries: Sequence[ModelEntry], catalog: Catalog, limits: Limits) -> list[ModelEntry]:
    """Those that are not known to lose too much."""
    return [
        entry for entry in entries if limits.quality(catalog.ratios(entry)) is not Verdict.EXCEEDED
    ]


def _value(ratio: Interval | None) -> float:
    return math.inf if ratio is None else ratio.value


def measure_int8(
    candidates: Candidates,
    sides: Mapping[str, Variant],
    settings: Settings,
    limits: Limits,
    until_s: float,
    say: Callable[[str], object],
) -> None:
    """Measure the perplexities of int8 weights that are not known, and keep them.

    ``sides`` has the dense model, and the int8 candidates by name.
    """
    qualities, checkpoints = MeasuredQualities(settings.data_dir), current_checkpoints(settings)
    path = ModelStore(settings.models_dir).path(candidates.model)
    of_weights = fingerprint(path)
    known = qualities.of_model(candidates.model, of_weights)
    newest = candidates.pruned[0].order if candidates.pruned else None
    by_order: dict[str | None, list[ModelEntry]] = {}
    for entry in candidates.int8:
        order = (entry.order if entry.num_removed else newest) or newest
        by_order.setdefault(order.name if order else None, []).append(entry)
    dense = sides[DENSE].model
    for checkpoint, entries in by_order.items():
        windows = windows_for(
            LoadedModel(dense, load_tokenizer(path), path), checkpoints, checkpoint
        )
        open_ones = {
            entry.pinned_name: sides[entry.name].model
            for entry in entries
            if windows.keys() - {one.domain for one in known.get(entry.pinned_name, ())}
        }
        measured = measure_qualities(
            dense,
            open_ones,
            windows,
            limits.max_ratio,
            until_s,
            lambda variant: say(f"Measuring the perplexity of {variant}"),
        )
        qualities.record(candidates.model, of_weights, measured)


@dataclass(frozen=True)
class MayBeTaken:
    """Which candidates may be taken, by their speeds at a load: those within the limits that are
    not surely slower than another one.
    """

    points: Sequence[Point]
    limits: Limits

    def __call__(self, known: Mapping[Measurand, Interval]) -> Collection[Measurand]:
        verdicts: dict[Measurand, set[Verdict]] = {}
        for point in self.points:
            of = Measurand(point.num_removed, point.is_int8)
            verdicts.setdefault(of, set()).add(self.limits.quality(point.ratios))
        kept = [each for what, each in known.items() if Verdict.KEPT in verdicts[what]]
        fastest = max(kept, key=lambda each: each.value, default=Interval(0.0, 0.0, 0.0)).low or 0.0
        least = max(fastest, self.limits.min_speedup)
        return [
            what
            for what, each in known.items()
            if each.high is not None and each.high >= least and verdicts[what] != {Verdict.EXCEEDED}
        ]


def with_speeds(
    points: Sequence[Point], speeds: Mapping[Load, Mapping[Measurand, Interval]]
) -> list[Point]:
    """The points with what was measured of their depths and weights."""
    return [replace(point, speeds=_speeds_of(point, speeds)) for point in points]


def _speeds_of(
    point: Point, speeds: Mapping[Load, Mapping[Measurand, Interval]]
) -> dict[str, Interval]:
    what = Measurand(point.num_removed, point.is_int8)
    return {load.name: known[what] for load, known in speeds.items() if what in known}
