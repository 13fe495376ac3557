"""One pruning run from spec to published checkpoint: load, calibrate, search, evaluate, publish.

Knows no queue and no web: progress goes to an observer, and what the observer raises ends the run
with nothing published.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pruning.checkpoints.card import model_card
from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory_plot import PLOT_FILE, plot
from pruning.checkpoints.verify import verify_portable
from pruning.config import Verify
from pruning.data.calibration import Windows, calibrate, described
from pruning.evaluation.assess import assess, prepare
from pruning.evaluation.quality import Quality
from pruning.models.blocks import num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.safetensors_files import fingerprint
from pruning.models.store import ModelStore, copy_companions, num_parameters
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.search import Observer, search
from pruning.search.state import SearchState
from pruning.spec.prune import PruneSpec


class RunObserver(Observer, Protocol):
    """Told of the search and of what comes behind it."""

    def warned(self, message: str) -> None:
        """The model is published all the same, but whoever takes it should know."""


def prune(
    spec: PruneSpec,
    *,
    name: str,
    target: Path,
    models: ModelStore,
    observer: RunObserver,
    resources: Resources | None = None,
    earlier: SearchState | None = None,
    confirm: Callable[[], object] = lambda: None,
    verify: Verify = Verify.INLINE,
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint called ``name`` at ``target``.

    ``earlier`` is what another process had found for the same spec: the search goes on behind it.
    ``confirm`` is asked right before the checkpoint becomes visible, and meanwhile if another
    process verifies it; it may raise. A search that cannot end, as with more removals than free
    blocks, is refused before the weights are read.
    Raises ``QualityGateFailed`` if the result is worse than the spec allows, and
    ``CheckpointNotPortable`` if it does not load as what it is.
    """
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)
    resources = resources or Resources()
    observer.phase("load")
    prepare(spec, info, resources.tasks_dir)
    dense = load_dense_model(models.path(spec.model), spec.resident, resources, dtype=spec.dtype)
    parent_fingerprint = fingerprint(dense.path)  # now, as it may be replaced during the search
    observer.phase("calibrate")
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    removals = search(spec, dense, windows, observer, earlier or SearchState())
    observer.phase("evaluate")
    quality = assess(spec, dense, removals, resources.tasks_dir)
    for warning in quality.warnings:
        observer.warned(warning)
    observer.phase("publish")
    manifest = replace(
        _manifest(spec, name, dense, windows, removals, quality),
        parent_fingerprint=parent_fingerprint,
    )
    return publish(
        target,
        manifest,
        lambda path: _write(path, dense, manifest, removals, windows),
        confirm,
        partial(
            verify_portable,
            dense=dense,
            keep=manifest.keep,
            how=verify,
            device=resources.device,
            ask=confirm,
        ),
    )


def _manifest(
    spec: PruneSpec,
    name: str,
    dense: DenseModel,
    windows: Windows,
    removals: Sequence[Removal],
    quality: Quality,
) -> Manifest:
    num_windows, seqlen = windows.token_ids.shape
    removed = tuple(removal.block for removal in removals)
    keep = kept(num_blocks(dense.model), removed)
    return Manifest(
        name=name,
        parent=spec.model,
        num_blocks=num_blocks(dense.model),
        removed_blocks=removed,
        num_parameters=num_parameters(view(dense.model, keep)),
        dense_num_parameters=num_parameters(dense.model),
        quality=quality,
        dtype=str(dense.model.dtype).removeprefix("torch."),
        calibration={
            "source": windows.source,
            "num_windows": num_windows,
            "seqlen": seqlen,
            "digest": windows.digest,
        },
        spec=spec.to_dict(),
        spec_digest=spec.digest(),
        versions={name: version(name) for name in ("sleb-serve", "torch", "transformers")},
        created_at=time.time(),
    )


def _write(
    directory: Path,
    dense: DenseModel,
    manifest: Manifest,
    removals: Sequence[Removal],
    windows: Windows,
) -> None:
    dense.save(manifest.keep, directory)
    copy_companions(dense.path, directory)
    card = model_card(manifest, removals, lineage_of(dense.path))
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / PLOT_FILE).write_bytes(plot(manifest))
    _write_json(directory / "removal.json", [asdict(removal) for removal in removals])
    _write_json(directory / "calibration.json", described(windows, dense.tokenizer))


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
