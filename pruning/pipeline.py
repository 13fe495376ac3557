"""One pruning run from spec to published checkpoint: load, calibrate, search, evaluate, publish.

It knows nothing of queues and HTTP. Progress goes to an observer, and an exception from the
observer ends the run before anything is published.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pruning.checkpoints.card import model_card
from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory_plot import PLOT_FILE, plot
from pruning.checkpoints.verify import verify_portable
from pruning.config import Verify
from pruning.data.calibration import calibrate
from pruning.data.windows import Windows, described
from pruning.evaluation.assess import assess, prepare
from pruning.evaluation.quality import Quality
from pruning.models.blocks import num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.safetensors_files import fingerprint
from pruning.models.store import ModelStore, copy_companions, num_parameters
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.search import search
from pruning.search.state import SearchState
from pruning.spec.prune import PruneSpec


def prune(
    spec: PruneSpec,
    *,
    name: str,
    target: Path,
    models: ModelStore,
    observer: Observer,
    resources: Resources | None = None,
    earlier: SearchState | None = None,
    confirm: Callable[[], object] = lambda: None,
    verify: Verify = Verify.INLINE,
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint ``name`` in the directory ``target``.

    ``earlier`` is the state of an interrupted search with the same spec, which goes on from there.
    ``confirm`` is called right before the checkpoint becomes visible, and repeatedly while another
    process verifies it; an exception from it cancels. Raises ``QualityGateFailed`` if the result
    is worse than the spec allows, ``CheckpointNotPortable`` if it cannot be loaded as written, and
    before any weight is read what ``PruneSpec.num_evaluations`` and ``prepare`` raise.
    """
    resources = resources or Resources()
    run = _searched(spec, models, observer, resources, earlier or SearchState())
    observer.phase("evaluate")
    quality = assess(spec, run.dense, run.removals, tasks_dir=resources.tasks_dir)
    for warning in quality.warnings:
        observer.warned(warning)
    observer.phase("publish")
    manifest = run.manifest(name, quality)
    check = partial(
        verify_portable,
        dense=run.dense,
        keep=manifest.keep,
        how=verify,
        device=resources.device,
        ask=confirm,
    )
    return publish(target, manifest, partial(run.write, manifest=manifest), confirm, check)


@dataclass(frozen=True)
class _Run:
    """A finished search, and what the checkpoint needs of it."""

    spec: PruneSpec
    dense: DenseModel
    fingerprint: str  # of the dense model when it was loaded
    windows: Windows
    removals: list[Removal]

    def manifest(self, name: str, quality: Quality) -> Manifest:
        model, depth = self.dense.model, num_blocks(self.dense.model)
        num_windows, seqlen = self.windows.token_ids.shape
        removed = tuple(removal.block for removal in self.removals)
        return Manifest(
            name=name,
            parent=self.spec.model,
            num_blocks=depth,
            removed_blocks=removed,
            num_parameters=num_parameters(view(model, kept(depth, removed))),
            dense_num_parameters=num_parameters(model),
            quality=quality,
            dtype=str(model.dtype).removeprefix("torch."),
            calibration={
                "source": self.windows.source,
                "num_windows": num_windows,
                "seqlen": seqlen,
                "digest": self.windows.digest,
            },
            spec=self.spec.to_dict(),
            spec_digest=self.spec.digest(),
            versions={name: version(name) for name in ("sleb-serve", "torch", "transformers")},
            created_at=time.time(),
            parent_fingerprint=self.fingerprint,
        )

    def write(self, directory: Path, manifest: Manifest) -> None:
        """Every file of the checkpoint but its manifest."""
        self.dense.save(manifest.keep, directory)
        copy_companions(self.dense.path, directory)
        card = model_card(manifest, self.removals, lineage_of(self.dense.path))
        (directory / "README.md").write_text(card, encoding="utf-8")
        (directory / PLOT_FILE).write_bytes(plot(manifest))
        _write_json(directory / "removal.json", [asdict(removal) for removal in self.removals])
        windows = described(self.windows, self.dense.tokenizer)
        _write_json(directory / "calibration.json", windows)


def _searched(
    spec: PruneSpec,
    models: ModelStore,
    observer: Observer,
    resources: Resources,
    earlier: SearchState,
) -> _Run:
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)  # raises for a search that cannot succeed
    observer.phase("load")
    prepare(spec, info, resources.tasks_dir)
    dense = load_dense_model(info.path, spec.resident, resources, dtype=spec.dtype)
    parent_fingerprint = fingerprint(dense.path)  # now, as the files may change during the search
    observer.phase("calibrate")
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    removals = search(spec, dense, windows, observer, earlier)
    return _Run(spec, dense, parent_fingerprint, windows, removals)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
