"""One pruning run from spec to published checkpoint: load, calibrate, search, evaluate, publish.

Knows no queue and no web: progress goes to an observer, and what the observer raises ends the run
with nothing published.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pruning.blocks import num_blocks, view
from pruning.calibration import Windows
from pruning.checkpoints import Manifest, Quality
from pruning.evaluate import perplexity_curve
from pruning.fingerprint import fingerprint
from pruning.gate import ask_both, gated
from pruning.mixing import calibrate, described, held_out
from pruning.model_card import model_card
from pruning.models import COMPANION_FILES, ModelStore, num_parameters
from pruning.publishing import publish
from pruning.removal import Removal
from pruning.residence import Machine, Residence, reside
from pruning.search import Observer, search
from pruning.search_state import SearchState
from pruning.spec import PruneSpec
from pruning.trajectory_plot import PLOT_FILE, plot


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
    machine: Machine | None = None,
    earlier: SearchState | None = None,
    confirm: Callable[[], object] = lambda: None,
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint called ``name`` at ``target``.

    ``earlier`` is what another process had found for the same spec: the search goes on behind it.
    ``confirm`` is asked right before the checkpoint becomes visible, and may raise. A search that
    cannot end, as with more removals than free blocks, is refused before the weights are read.
    Raises ``QualityGateFailed`` if the result is worse than the spec allows.
    """
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)
    observer.phase("load")
    dense = reside(spec, models, machine or Machine())
    parent_fingerprint = fingerprint(dense.path)  # now, as it may be replaced during the search
    observer.phase("calibrate")
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    removals = search(spec, dense, windows, observer, earlier or SearchState())
    observer.phase("evaluate")
    quality = _quality(spec, dense, removals)
    for warning in quality.warnings:
        observer.warned(warning)
    observer.phase("publish")
    manifest = replace(
        _manifest(spec, name, dense, windows, removals, quality),
        parent_fingerprint=parent_fingerprint,
    )
    return publish(
        target, manifest, lambda path: _write(path, dense, manifest, removals, windows), confirm
    )


def _quality(spec: PruneSpec, dense: Residence, removals: Sequence[Removal]) -> Quality:
    """Raises ``QualityGateFailed``."""
    quality = _losses_and_perplexities(spec, dense, removals)
    if spec.gate is None:
        return quality
    removed = [removal.block for removal in removals]
    return gated(spec.gate, quality, partial(ask_both, dense, removed))


def _losses_and_perplexities(
    spec: PruneSpec, dense: Residence, removals: Sequence[Removal]
) -> Quality:
    losses = (removals[0].dense_loss, *(removal.loss for removal in removals))
    if not spec.evaluate:
        return Quality(losses)
    windows = held_out(spec.calibration, dense.model, dense.tokenizer)
    removed = [removal.block for removal in removals]
    scorer = dense.local_scorer(windows.token_ids)
    num_windows, seqlen = windows.token_ids.shape
    return Quality(
        losses=losses,
        perplexities=tuple(perplexity_curve(scorer, num_blocks(dense.model), removed)),
        evaluated_on=f"{windows.source}, {num_windows} windows of {seqlen} tokens",
    )


def _manifest(
    spec: PruneSpec,
    name: str,
    dense: Residence,
    windows: Windows,
    removals: Sequence[Removal],
    quality: Quality,
) -> Manifest:
    num_windows, seqlen = windows.token_ids.shape
    removed = tuple(removal.block for removal in removals)
    keep = [block for block in range(num_blocks(dense.model)) if block not in removed]
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
    dense: Residence,
    manifest: Manifest,
    removals: Sequence[Removal],
    windows: Windows,
) -> None:
    dense.save(manifest.keep, directory)
    for file in COMPANION_FILES:  # as they are: a tokenizer written anew may differ by a byte
        if (dense.path / file).is_file():
            shutil.copyfile(dense.path / file, directory / file)
    card = model_card(manifest, removals)
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / PLOT_FILE).write_bytes(plot(manifest))
    _write_json(directory / "removal.json", [asdict(removal) for removal in removals])
    _write_json(directory / "calibration.json", described(windows, dense.tokenizer))


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
