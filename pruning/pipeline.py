"""One pruning run from spec to published checkpoint: load, calibrate, search, evaluate, publish.

Knows no queue and no web: progress goes to an observer, and what the observer raises ends the run
with nothing published.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pruning.blocks import num_blocks, view
from pruning.calibration import Windows, calibrate, held_out
from pruning.checkpoints import Manifest, Quality
from pruning.evaluate import perplexity_curve
from pruning.model_card import model_card
from pruning.models import ModelStore, num_parameters
from pruning.publishing import publish
from pruning.removal import Removal
from pruning.residence import Machine, Residence, reside
from pruning.search import Observer, search
from pruning.search_state import SearchState
from pruning.spec import PruneSpec
from pruning.trajectory_plot import PLOT_FILE, plot

# Copied as they are: a tokenizer written anew may differ from its parent's by a byte.
_COPIED_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "LICENSE",
)


def prune(
    spec: PruneSpec,
    *,
    name: str,
    target: Path,
    models: ModelStore,
    observer: Observer,
    machine: Machine | None = None,
    earlier: SearchState | None = None,
    confirm: Callable[[], object] = lambda: None,
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint called ``name`` at ``target``.

    ``earlier`` is what another process had found for the same spec: the search goes on behind it.
    ``confirm`` is asked right before the checkpoint becomes visible, and may raise. A search that
    cannot end, as with more removals than free blocks, is refused before the weights are read.
    """
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)
    observer.phase("load")
    dense = reside(spec, models, machine or Machine())
    observer.phase("calibrate")
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    removals = search(spec, dense, windows, observer, earlier or SearchState())
    observer.phase("evaluate")
    quality = _quality(spec, dense, removals)
    observer.phase("publish")
    manifest = _manifest(spec, name, dense, windows, removals, quality)
    return publish(target, manifest, lambda path: _write(path, dense, manifest, removals), confirm)


def _quality(spec: PruneSpec, dense: Residence, removals: Sequence[Removal]) -> Quality:
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
    directory: Path, dense: Residence, manifest: Manifest, removals: Sequence[Removal]
) -> None:
    dense.save(manifest.keep, directory)
    for file in _COPIED_FILES:
        if (dense.path / file).is_file():
            shutil.copyfile(dense.path / file, directory / file)
    card = model_card(manifest, removals)
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / PLOT_FILE).write_bytes(plot(manifest))
    record = json.dumps([asdict(removal) for removal in removals], indent=2)
    (directory / "removal.json").write_text(record + "\n", encoding="utf-8")
