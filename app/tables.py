"""Tables on the terminal, each also as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.catalog import Catalog, Entry
from app.config import ServeSettings
from pruning.checkpoints import CheckpointStore, Manifest
from pruning.models import ModelStore


def print_json(data: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    Console().print_json(json.dumps(data))


def print_manifest(manifest: Manifest, path: Path, *, as_json: bool) -> None:
    """What every removal cost, and where the checkpoint lies."""
    if as_json:
        print_json({"path": str(path), **asdict(manifest)})
        return
    quality = manifest.quality
    table = Table(title=f"{manifest.parent}, block by block")
    for heading in ("blocks", "removed", "loss", "perplexity"):
        table.add_column(heading, justify="right")
    for num_removed, loss in enumerate(quality.losses):
        block = str(manifest.removed_blocks[num_removed - 1]) if num_removed else "-"
        perplexity = f"{quality.perplexities[num_removed]:.2f}" if quality.perplexities else "-"
        table.add_row(str(manifest.num_blocks - num_removed), block, f"{loss:.4f}", perplexity)
    console = Console(highlight=False)
    console.print(table)
    if quality.evaluated_on:
        console.print(f"perplexity on held-out text: {quality.evaluated_on}")
    share = 1 - manifest.num_parameters / manifest.dense_num_parameters
    console.print(f"{manifest.num_parameters:,} parameters, {share:.1%} less; published in {path}")


def print_models(settings: ServeSettings, *, as_json: bool) -> None:
    """The catalogue of the data directory, without any server."""
    models = ModelStore(settings.models_dir)
    entries = Catalog(models, CheckpointStore(settings.checkpoints_dir)).entries()
    if as_json:
        print_json([_entry_json(entry) for entry in entries])
        return
    table = Table()
    for heading in ("model", "blocks", "removed blocks", "perplexity", ""):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        removed = " ".join(map(str, entry.removed_blocks))
        perplexity = f"{entry.perplexity:.2f}" if entry.perplexity is not None else ""
        table.add_row(entry.name, str(entry.num_blocks), removed, perplexity, entry.error or "")
    Console().print(table if entries else f"no models in {settings.models_dir}")


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "parent": entry.base if entry.num_removed else None,
        "num_blocks": entry.num_blocks,
        "removed_blocks": list(entry.removed_blocks),
        "perplexity": entry.perplexity,
        "error": entry.error,
    }
