"""``sleb models`` and ``sleb advise``: all models, their curves and aliases, and which to take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.api.formats.advice import advice_view
from app.commands.domain_table import fits
from app.commands.verdict import print_verdict
from app.config import ServeSettings
from app.models.advice import advice_on
from app.models.aliases import Aliases
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.external import read_external_models
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import NOT_MEASURED, MeasuredSpeedups
from app.terminal import filled, print_json
from pruning.checkpoints.orders_plot import MAX_ORDERS, NothingToPlot, plot_orders
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import short
from pruning.evaluation.limits import Limits
from pruning.evaluation.quality import DomainQuality
from pruning.extras import require_extra
from pruning.models.store import ModelStore
from pruning.plural import counted
from pruning.storage.checkpoints import current_checkpoints


def catalog_of(settings: ServeSettings) -> Catalog:
    """The catalog of the data directory, without the prefixes of running jobs."""
    return Catalog(
        ModelStore(settings.models_dir),
        current_checkpoints(settings),
        external=read_external_models(settings.external_models_file),
        aliases=Aliases(settings.data_dir),
        speedups=MeasuredSpeedups(settings.data_dir),
        qualities=MeasuredQualities(settings.data_dir),
    )


def print_aliases(settings: ServeSettings) -> None:
    """Print one line for each alias."""
    aliases = Aliases(settings.data_dir).all()
    console = Console(highlight=False)
    for alias, target in aliases.items():
        console.print(f"{alias} is {target}", markup=False, soft_wrap=True)
    if not aliases:
        console.print("no aliases: set one with sleb models alias ALIAS TARGET")


def change_alias(settings: ServeSettings, alias: str, target: str | None) -> None:
    """Set the alias, or remove it if there is no target."""
    catalog = catalog_of(settings)
    if target is None:
        catalog.remove_alias(alias)
        Console().print(f"removed the alias {alias}", markup=False)
    else:
        entry = catalog.set_alias(alias, target)
        text = f"{alias} is {entry.pinned_name}"
        Console(highlight=False).print(text, markup=False, soft_wrap=True)


def print_models(settings: ServeSettings, *, as_json: bool) -> None:
    """Print the catalog of the data directory; no server is needed."""
    catalog = catalog_of(settings)
    entries, aliases = catalog.entries(), catalog.aliases()
    if as_json:
        print_json([_entry_json(catalog, entry, aliases) for entry in entries])
        return
    console = Console()
    if not entries:
        console.print(f"no models in {settings.models_dir}")
        return
    texts = _texts(entries)
    speeds = {entry.name: _speedups(catalog, entry) for entry in entries}
    _print_entries(console, entries, texts, speeds)
    for alias, target in aliases.items():
        console.print(f"{alias} is {target}", markup=False, soft_wrap=True)
    for text, heading in texts.items():
        console.print(f"{heading}: perplexity on {text.words}", markup=False)
    if any(entry.is_pruned for entry in entries):
        console.print(
            "predicted: decoding speed-up at batch size 1, from the measured times of the blocks"
        )
        console.print(
            "measured: speed-up per token on this machine, by bench or compare, with 95 % interval"
        )
    if texts:
        console.print("in parentheses: ratio to the dense model's perplexity on the same text")
    if any(entry.control_on(domain) for entry in entries for domain in entry.domains):
        console.print("control: the dense model after the same training")


def print_advice(
    settings: ServeSettings,
    model: str,
    limits: Limits,
    load: str | None = None,
    *,
    as_json: bool,
) -> None:
    """Raises ``UnknownModel``, ``NotDense`` or ``LoadNotMeasured``."""
    advice = advice_on(model, catalog_of(settings), limits, load)
    if as_json:
        print_json(advice_view(advice))
        return
    print_verdict(advice, Console(highlight=False))


def plot_models(settings: ServeSettings, names: Sequence[str], out: Path) -> None:
    """Write the picture of these checkpoints, of those of these models, or of all.

    Raises ``ExtraMissing``, ``NothingToPlot``, ``CheckpointNotFound`` or ``CheckpointCorrupt``.
    """
    require_extra("plots", "a plot")
    manifests = _newest_first(current_checkpoints(settings), names)
    parents = sorted({manifest.parent for manifest in manifests})
    if not manifests:
        raise NothingToPlot("no checkpoints found: prune a model first")
    if len(parents) > 1:
        raise NothingToPlot(
            "cannot plot checkpoints of several models together: choose one of "
            f"{', '.join(parents)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(plot_orders(manifests))
    console = Console(highlight=False)
    for manifest in manifests[:MAX_ORDERS]:
        console.print(manifest.name, markup=False, soft_wrap=True)
    if len(manifests) > MAX_ORDERS:
        left_out = counted(len(manifests) - MAX_ORDERS, "older checkpoint")
        console.print(f"not plotted: {left_out}; give their names to plot them")
    console.print(f"plot: {out}", markup=False, soft_wrap=True)


def _newest_first(store: CheckpointStore, names: Sequence[str]) -> list[Manifest]:
    known = [store.manifest(name) for name in store.names()]
    parents = {manifest.parent for manifest in known}
    for name in names:
        if "@" not in name and name not in parents:
            raise NothingToPlot(f"{name[:128]} has no checkpoint: prune the model first")
    chosen = [store.manifest(name) for name in names if name not in parents]
    chosen += [manifest for manifest in known if not names or manifest.parent in names]
    unique = {manifest.name: manifest for manifest in chosen}
    return sorted(unique.values(), key=lambda manifest: manifest.created_at, reverse=True)


def _print_entries(
    console: Console,
    entries: Sequence[ModelEntry],
    texts: Mapping["_Text", str],
    speeds: Mapping[str, "_Speedups"],
) -> None:
    """As a table if the terminal has room for it, so that names and numbers stay whole."""
    listed = _table(entries, texts, speeds)
    if fits(console, listed):
        console.print(listed)
        return
    for line in (line for entry in entries for line in _lines(entry, texts, speeds)):
        console.print(line, markup=False, highlight=False)


def _table(
    entries: Sequence[ModelEntry], texts: Mapping["_Text", str], speeds: Mapping[str, "_Speedups"]
) -> Table:
    fixed = ("model", "blocks", "removed blocks", "repair", "predicted", "measured")
    errors = ("error",) if any(entry.error for entry in entries) else ()
    headings, rows = (*fixed, *texts.values(), *errors), []
    for entry in entries:
        removed = " ".join(map(str, entry.removed_blocks))
        repair = entry.repair.label if entry.repair else ""
        measured = dict(_measured(entry))
        cells = (measured.get(text, "") for text in texts)
        num_blocks = str(entry.num_blocks or "")  # may be unknown of a model on another server
        known = (entry.name, num_blocks, removed, repair, *speeds[entry.name], *cells)
        rows.append([*known, *(entry.error or "" for _ in errors)])
    return filled(Table(), headings, rows, headings)


def _lines(
    entry: ModelEntry, texts: Mapping["_Text", str], speeds: Mapping[str, "_Speedups"]
) -> Iterator[str]:
    """The row of a model for a terminal that has no room for the table."""
    if entry.error is not None:
        yield f"{entry.name}: {entry.error}"
        return
    parts = [counted(entry.num_blocks, "block")] if entry.num_blocks else []
    if entry.external is not None:
        parts.append("on another server")
    if entry.removed_blocks:
        parts.append(f"removed {' '.join(map(str, entry.removed_blocks))}")
    if entry.repair is not None:
        parts.append(f"repair: {entry.repair.label}")
    yield f"{entry.name}: {', '.join(parts)}"
    predicted, measured = speeds[entry.name]
    if entry.is_pruned:
        ends = measured if measured == NOT_MEASURED else f"measured {measured}"
        known = "not predicted" if entry.predicted_speedup is None else f"predicted {predicted}"
        yield f"  speed-up: {known}, {ends}"
    if qualities := [f"{texts[text]} {cell}" for text, cell in _measured(entry)]:
        yield f"  {', '.join(qualities)}"


_Speedups = tuple[str, str]  # predicted and measured


def _speedups(catalog: Catalog, entry: ModelEntry) -> _Speedups:
    """In words where one is missing; both are empty for a dense model."""
    if not entry.is_pruned:
        return "", ""
    predicted, measured = entry.predicted_speedup, catalog.measured_speedup(entry)
    return (
        "not predicted" if predicted is None else f"{predicted:.2f}",
        NOT_MEASURED if measured is None else str(measured),
    )


@dataclass(frozen=True)
class _Text:
    """What a column of perplexities was measured on. Those of equal texts can be compared."""

    name: str
    words: str
    windows: str  # the digest of the windows, or the dense model if that is not known


def _texts(entries: Sequence[ModelEntry]) -> dict[_Text, str]:
    """Every text on which a model was measured, with a heading of its own."""
    headings: dict[_Text, str] = {}
    for text in (text for entry in entries for text, _ in _measured(entry)):
        if text not in headings:
            number = 1 + sum(other.name == text.name for other in headings)
            headings[text] = text.name if number == 1 else f"{text.name} {number}"
    return headings


def _measured(entry: ModelEntry) -> Iterator[tuple[_Text, str]]:
    """Each text of the model, and its perplexity there with the ratio to the dense one."""
    for domain in entry.domains:
        measured = entry.measured_on(domain)
        control = entry.control_on(domain)
        ratios = [domain.ratio(one).value for one in (measured, control) if one is not None]
        yield (
            _Text(domain.domain, domain.text, domain.digest),
            _perplexity(entry, measured.perplexity, *ratios),
        )
    if not entry.domains and entry.order is not None and entry.perplexity is not None:
        ratio = entry.perplexity / entry.order.quality.perplexities[0]
        text = _Text("perplexity", entry.evaluated_on or "unknown text", entry.base)
        yield text, _perplexity(entry, entry.perplexity, ratio)


def _perplexity(
    entry: ModelEntry, perplexity: float, ratio: float, control: float | None = None
) -> str:
    of_control = "" if control is None else f", control {short(control)}×"
    return short(perplexity) + (f" ({short(ratio)}×{of_control})" if entry.is_pruned else "")


def _entry_json(catalog: Catalog, entry: ModelEntry, aliases: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": entry.name,
        "aliases": [name for name, target in aliases.items() if target == entry.pinned_name],
        "parent": entry.parent,
        "num_blocks": entry.num_blocks,
        "removed_blocks": list(entry.removed_blocks),
        "repair": _repair_json(entry),
        "predicted_speedup": entry.predicted_speedup,
        "measured_speedup": catalog.measured_speedup(entry),
        "perplexity": entry.perplexity,
        "evaluated_on": entry.evaluated_on,
        "domains": [_domain_json(entry, domain) for domain in entry.domains],
        "error": entry.error,
    }


def _domain_json(entry: ModelEntry, domain: DomainQuality) -> dict[str, Any]:
    measured, control = entry.measured_on(domain), entry.control_on(domain)
    return {
        "domain": domain.domain,
        "text": domain.text,
        "digest": domain.digest,
        "perplexity": measured.perplexity,
        "dense_perplexity": domain.dense.perplexity,
        "ratio": domain.ratio(measured),
        "control_perplexity": control.perplexity if control else None,
        "control_ratio": domain.ratio(control) if control else None,
    }


def _repair_json(entry: ModelEntry) -> dict[str, Any] | None:
    if (repair := entry.repair) is None:
        return None
    raw, is_healed = entry.raw.name, repair.is_healed
    return {"method": repair.method, "bytes": repair.num_bytes, "raw": raw, "is_healed": is_healed}
