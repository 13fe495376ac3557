"""Tables of runs and models on the terminal, and the same as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.config import ServeSettings
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.external import read_external_models
from app.terminal import print_json
from pruning.checkpoints.domain_tables import depth_table, explained
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import legend, rows, short, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.evaluation.quality import DomainQuality
from pruning.models.store import ModelStore
from pruning.removal import Removal


def print_run(
    manifest: Manifest, removals: Sequence[Removal], path: Path, *, as_json: bool
) -> None:
    """Print the trajectory of a pruning run and the path of its checkpoint."""
    trajectory = rows(manifest, removals)
    if as_json:
        print_json(
            {
                "path": str(path),
                "plot": str(path / PLOT_FILE),
                "trajectory": [asdict(row) for row in trajectory],
                **asdict(manifest),
            }
        )
        return
    headings, cells = table(trajectory)
    console = Console(highlight=False)
    console.print(_table(f"{manifest.parent}, block by block", headings, cells))
    for text in legend(manifest, headings):
        console.print(text, markup=False, soft_wrap=True)
    if domains := manifest.quality.domains:
        by_domain = depth_table(domains, len(manifest.removed_blocks))
        console.print(_table("perplexity of the pruned model by domain", *by_domain))
        for text in explained(domains):
            console.print(text, markup=False, soft_wrap=True)
    share = 1 - manifest.num_parameters / manifest.dense_num_parameters
    for text in (
        f"plot: {path / PLOT_FILE}",
        f"{manifest.num_parameters:,} parameters, {share:.1%} less; published in {path}",
    ):
        console.print(text, markup=False, soft_wrap=True)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_models(settings: ServeSettings, *, as_json: bool) -> None:
    """Print the catalog of the data directory; no server is needed."""
    models = ModelStore(settings.models_dir)
    external = read_external_models(settings.external_models_file)
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    entries = Catalog(models, checkpoints, external=external).entries()
    if as_json:
        print_json([_entry_json(entry) for entry in entries])
        return
    console = Console()
    if not entries:
        console.print(f"no models in {settings.models_dir}")
        return
    texts = _texts(entries)
    listed = Table()
    for heading in ("model", "blocks", "removed blocks", "repair", *texts.values(), ""):
        listed.add_column(heading, overflow="fold")
    for entry in entries:
        removed = " ".join(map(str, entry.removed_blocks))
        repair = entry.repair.method.value if entry.repair else ""
        measured = dict(_measured(entry))
        cells = (measured.get(text, "") for text in texts)
        listed.add_row(
            entry.name, str(entry.num_blocks), removed, repair, *cells, entry.error or ""
        )
    console.print(listed)
    for text, heading in texts.items():
        console.print(f"{heading}: perplexity on {text.words}", markup=False, soft_wrap=True)
    if texts:
        console.print("in parentheses: times the perplexity of the dense model, on the same text")


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
        ratio = domain.ratio(measured).value
        yield (
            _Text(domain.domain, domain.text, domain.digest),
            _perplexity(entry, measured.perplexity, ratio),
        )
    if not entry.domains and entry.order is not None and entry.perplexity is not None:
        ratio = entry.perplexity / entry.order.quality.perplexities[0]
        text = _Text("perplexity", entry.evaluated_on or "an unknown text", entry.base)
        yield text, _perplexity(entry, entry.perplexity, ratio)


def _perplexity(entry: ModelEntry, perplexity: float, ratio: float) -> str:
    return short(perplexity) + (f" ({short(ratio)}×)" if entry.is_pruned else "")


def _entry_json(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "parent": entry.parent,
        "num_blocks": entry.num_blocks,
        "removed_blocks": list(entry.removed_blocks),
        "repair": _repair_json(entry),
        "perplexity": entry.perplexity,
        "evaluated_on": entry.evaluated_on,
        "domains": [_domain_json(entry, domain) for domain in entry.domains],
        "error": entry.error,
    }


def _domain_json(entry: ModelEntry, domain: DomainQuality) -> dict[str, Any]:
    measured = entry.measured_on(domain)
    return {
        "domain": domain.domain,
        "text": domain.text,
        "digest": domain.digest,
        "perplexity": measured.perplexity,
        "dense_perplexity": domain.dense.perplexity,
        "ratio": asdict(domain.ratio(measured)),
    }


def _repair_json(entry: ModelEntry) -> dict[str, Any] | None:
    if entry.repair is None:
        return None
    method, num_bytes = entry.repair.method, entry.repair.num_bytes
    return {"method": method, "bytes": num_bytes, "raw": entry.raw.name}
