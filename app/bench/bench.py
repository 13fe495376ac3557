"""``sleb bench``: measure the speed-up of pruned variants over their dense model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.bench.plan import AGAIN, DENSE, BenchPlan, BenchSubject, Scenario
from app.bench.result import (
    HEADINGS,
    Bench,
    cells,
    facts_of,
    markdown,
    reasons,
    summary,
    to_wire,
)
from app.bench.runs import Measure, OwnRuns, Sample
from app.compare.speedup import alternate, widened
from app.engine.autotuning import Autotuner
from app.engine.engine import Engine
from app.engine.kernels.compiled.openmp import keep_compiled_in
from app.engine.running.cuda_graphs import no_recorder
from app.engine.variant import make_variant
from app.models.catalog import Catalog, UnknownModel
from app.models.demo_bar import demo_model_with_bar
from app.models.entry import ModelEntry
from app.models.measured_speedups import Measurand, MeasuredSpeedups
from app.results.store import ResultKind, ResultStore
from app.terminal import json_text, print_json, saying
from pruning.checkpoints.store import CheckpointStore
from pruning.config import Settings
from pruning.models.demo_model import NAME
from pruning.models.names import VariantName
from pruning.models.random_models import random_model
from pruning.models.store import ModelStore, set_up_torch
from pruning.models.timing import measure_times
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks
from pruning.storage.checkpoints import current_checkpoints

REPORT_FILE, TABLE_FILE = "bench.json", "bench.md"
_OF_A_SHAPE = "@-6"  # the variant of a model with random weights


class NothingPublished(LookupError):
    """A model has no pruned variant that could be measured by default."""


def run_bench(
    subject: BenchSubject, plan: BenchPlan, out: Path, facts: Mapping[str, object]
) -> Bench:
    """Measure all scenarios, and write the reports into ``out`` after each.

    Raises ``WrongLength``, or ``RequestRefused`` for lengths beyond the model's maximum.
    """
    sides = subject.sides()
    dense = subject.dense.model
    console = Console(stderr=True, highlight=False)
    with saying(console, "Compiling and measuring kernels"):
        Engine(tuner=subject.tuner, recorder=no_recorder).kernels.finish(*sides.values())
    with saying(console, "Measuring the parts of a decode step"):
        parts = {scenario: measure_times(dense, plan.rows(scenario)) for scenario in plan.scenarios}
    weights = {  # tied ones count once
        name: sum(parameter.nbytes for parameter in variant.model.parameters())
        for name, variant in sides.items()
    }
    engine = {"name": "own", "version": version("sleb-serve"), "arguments": []}
    bench = Bench(subject, plan, {}, parts, weights, {"engine": engine, **facts})
    return measured(bench, list(sides), OwnRuns(sides, subject.tuner).measure, out)


def measured(bench: Bench, sides: Sequence[str], measure: Measure, out: Path) -> Bench:
    """The bench with samples of all scenarios. The reports are written into ``out`` after each."""
    console, plan = Console(stderr=True, highlight=False), bench.plan
    with Progress(console=console) as progress:
        for scenario in plan.scenarios:
            if not console.is_terminal:
                console.print(f"Measuring {scenario}", markup=False)
            task = progress.add_task(scenario, total=len(sides) * (1 + plan.repeats))
            advance = partial(progress.advance, task)
            samples = _in_turns(sides, measure, scenario, plan, advance)
            bench = replace(bench, samples={**bench.samples, scenario: samples})
            _write(bench, out)
    return bench


def stored_subject(
    name: str, variants: Sequence[str], dtype: str, settings: Settings
) -> BenchSubject:
    """A model of the data directory, and variants of its published removal orders.

    Without ``variants``, the deepest published one. Raises ``NothingPublished``, ``UnknownModel``,
    ``ModelNotFound``, ``NotAModel`` or ``CheckpointCorrupt``.
    """
    set_up_torch(settings.threads)
    if name == NAME:
        demo_model_with_bar(settings.models_dir)
    models = ModelStore(settings.models_dir)
    checkpoints = current_checkpoints(settings)
    catalog = Catalog(models, checkpoints)
    entries = [
        catalog.resolve(variant if variant.startswith(name) else f"{name}{variant}")
        for variant in variants or [_deepest(name, catalog)]
        if variant != DENSE  # every bench measures it twice
    ]
    for entry in entries:
        if not entry.is_view or entry.base != name:
            raise UnknownModel(
                f"{entry.name!r} is not a variant of the model {name!r} in the data directory"
            )
    repairs = {each.name: repair for each in entries if (repair := _repair(each, checkpoints))}
    with saying(Console(stderr=True), f"Loading {name}"):
        loaded = models.load(name, dtype=dtype, device=settings.device)
    return BenchSubject(
        name,
        make_variant(name, name, loaded.model),
        {entry.name: entry.removed_blocks for entry in entries},
        repairs,
        _tuner(settings),
        frozenset(each.order.tenant for each in entries if each.order and each.order.tenant),
    )


def _deepest(name: str, catalog: Catalog) -> str:
    """The variant of all removals of the newest published order."""
    order = catalog.resolve(name).order
    if order is None:
        raise NothingPublished(
            f"no pruned variant of {name!r} is published: prune it with "
            f"`sleb jobs submit {name} --num-remove 1`, or choose with --variants, as +int8"
        )
    return f"@-{order.depth}"


def random_subject(
    shape: str, variants: Sequence[str], dtype: str, settings: Settings
) -> BenchSubject:
    """A model of a published shape with random weights.

    ``@-k`` is without the last k blocks; which blocks makes no difference to the speed. Raises
    ``UnknownShape`` or ``UnknownModel``.
    """
    set_up_torch(settings.threads)
    weight_dtype = "bfloat16" if dtype == "auto" else dtype
    dense = make_variant(shape, shape, random_model(shape, weight_dtype, device=settings.device))
    num_blocks = len(dense.keep)
    removed: dict[str, Blocks] = {}
    for variant in variants or [_OF_A_SHAPE]:
        if variant == DENSE:
            continue  # every bench measures it twice
        name = VariantName.parse(variant)
        depth = name.depth or 0
        is_known = name == VariantName("", depth=name.depth, is_int8=name.is_int8)
        if not is_known or not (depth or name.is_int8) or depth >= num_blocks or name.depth == 0:
            raise UnknownModel(
                f"invalid variant {variant!r}: expected dense, @-1 to @-{num_blocks - 1}, or "
                "+int8, alone or appended to one of these"
            )
        removed[f"{shape}{variant}"] = tuple(range(num_blocks - depth, num_blocks))
    return BenchSubject(shape, dense, removed, tuner=_tuner(settings))


def subject_of(
    model: str | None, shape: str | None, variants: Sequence[str], dtype: str, settings: Settings
) -> BenchSubject:
    """The stored model, or one of that shape if there is none. Raises as both do."""
    if model is not None:
        return stored_subject(model, variants, dtype, settings)
    return random_subject(shape or "", variants, dtype, settings)


def _tuner(settings: Settings) -> Autotuner:
    if settings.tune != "off":
        keep_compiled_in(settings.data_dir)
    return Autotuner.of(settings.tune, settings.data_dir)


def bench_model(
    model: str | None,
    shape: str | None,
    variants: Sequence[str],
    plan: BenchPlan,
    out: Path,
    dtype: str,
    settings: Settings,
) -> Bench:
    """Measure and keep the result. Speed-ups of a stored model are recorded for the catalog.

    Raises as ``subject_of`` and ``run_bench`` do.
    """
    subject = subject_of(model, shape, variants, dtype, settings)
    bench = run_bench(subject, plan, out, facts_of(dtype))
    if model is not None:
        _record_speedups(bench, settings)
    keep(bench, settings)
    return bench


def keep(bench: Bench, settings: Settings) -> None:
    """Keep the result in the data directory, where the API finds it. Raises ``OSError``."""
    headline = "; ".join(summary(row) for row in bench.rows() if row.time == "tpot")
    ResultStore(settings.data_dir).keep(
        ResultKind.BENCH,
        bench.subject.name,
        headline,
        to_wire(bench),
        tenants=bench.subject.tenants,
    )


def _record_speedups(bench: Bench, settings: Settings) -> None:
    """Of a token at every depth with plain and int8 weights, where it is known well. The last
    scenario that knows it counts: requests of many clients.
    """
    rows = [row for row in bench.rows() if row.time == "tpot"]
    control = {row.scenario: row.speedup for row in rows if row.variant == AGAIN}
    speedups = {
        Measurand(
            len(bench.subject.removed[row.variant]), row.variant in bench.subject.int8
        ): kept.record(row.scenario.value)
        for row in rows
        if row.variant != AGAIN
        and (kept := widened(row.speedup, control[row.scenario])) is not None
    }
    if speedups:
        MeasuredSpeedups(settings.data_dir).record(bench.subject.name, speedups)


def print_bench(bench: Bench, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(out), **to_wire(bench)})
        return
    console = Console(highlight=False)
    for scenario in bench.samples:
        rows = [row for row in bench.rows() if row.scenario is scenario]
        title = escape(f"{scenario}: {bench.plan.description(scenario)}")
        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", collapse_padding=True)
        for number, heading in enumerate(HEADINGS[:-1]):  # verdicts follow, with their reasons
            table.add_column(heading, justify="right" if number > 1 else "left", no_wrap=True)
        for row in rows:
            side, *others = cells(row)[:-1]
            table.add_row(escape(side.removeprefix(bench.subject.name)), *others)
        console.print(table)
        for reason in reasons(rows):
            console.print(f"  {reason}", markup=False)
    console.print(f"reports: {out}", markup=False, soft_wrap=True)


def _repair(entry: ModelEntry, checkpoints: CheckpointStore) -> Repaired | None:
    """Raises ``CheckpointCorrupt``."""
    if entry.order is None or entry.view_repair is None:
        return None
    return checkpoints.repair(entry.order.name, entry.num_removed)


def _in_turns(
    sides: Sequence[str],
    measure: Measure,
    scenario: Scenario,
    plan: BenchPlan,
    advance: Callable[[], None],
) -> dict[str, list[Sample]]:
    for name in sides:
        measure(name, scenario, plan.warm_up)
        advance()
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for _, name in alternate(sides, plan.repeats):
        samples[name].append(measure(name, scenario, plan))
        advance()
    return samples


def _write(bench: Bench, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json_text(to_wire(bench), indent=2) + "\n"
    (out / REPORT_FILE).write_text(text, encoding="utf-8")
    (out / TABLE_FILE).write_text(markdown(bench), encoding="utf-8")
