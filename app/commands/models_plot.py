"""``sleb models plot``: the removal orders of a model in one picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from app.config import ServeSettings
from pruning.checkpoints.orders_plot import MAX_ORDERS, NothingToPlot, plot_orders
from pruning.checkpoints.store import CheckpointStore, Manifest


def plot_models(settings: ServeSettings, names: Sequence[str], out: Path) -> None:
    """Write the picture of these checkpoints, of those of these models, or of all.

    Raises ``NothingToPlot``, ``CheckpointNotFound`` or ``CheckpointCorrupt``.
    """
    manifests = _newest_first(CheckpointStore(settings.checkpoints_dir), names)
    parents = sorted({manifest.parent for manifest in manifests})
    if not manifests:
        raise NothingToPlot("there are no checkpoints: prune a model first")
    if len(parents) > 1:
        raise NothingToPlot(
            f"these are checkpoints of several models, whose curves cannot be compared: name one "
            f"of {', '.join(parents)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(plot_orders(manifests))
    console = Console(highlight=False)
    for manifest in manifests[:MAX_ORDERS]:
        console.print(manifest.name, markup=False, soft_wrap=True)
    if len(manifests) > MAX_ORDERS:
        left_out = len(manifests) - MAX_ORDERS
        console.print(f"{left_out} older ones are left out: name those that you want")
    console.print(f"plot: {out}", markup=False, soft_wrap=True)


def _newest_first(store: CheckpointStore, names: Sequence[str]) -> list[Manifest]:
    known = [store.manifest(name) for name in store.names()]
    parents = {manifest.parent for manifest in known}
    chosen = [store.manifest(name) for name in names if name not in parents]
    chosen += [manifest for manifest in known if not names or manifest.parent in names]
    unique = {manifest.name: manifest for manifest in chosen}
    return sorted(unique.values(), key=lambda manifest: manifest.created_at, reverse=True)
