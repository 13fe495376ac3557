"""One pruning run from spec to published checkpoint: load, calibrate, search, evaluate, publish.

Knows no queue and no web: progress goes to an observer, and what the observer raises ends the run
with nothing published.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pruning.blocks import num_blocks, view
from pruning.calibration import Windows, calibrate, held_out
from pruning.checkpoints import Manifest, Quality, publish
from pruning.evaluate import perplexity_curve
from pruning.memory import free_bytes
from pruning.model_card import model_card
from pruning.models import LoadedModel, ModelStore, num_parameters
from pruning.scoring import SharedPrefixScorer
from pruning.sleb import Blocks, Removal, RoundScorer, sleb
from pruning.spec import PruneSpec

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


class Observer(Protocol):
    """Told of everything as it happens; may raise to stop the run."""

    def phase(self, phase: str) -> None:
        """``load``, ``calibrate``, ``search``, ``evaluate`` or ``publish`` begins."""

    def evaluated(self, done: int, total: int) -> None:
        """One more candidate loss of a known total is there."""

    def removed(self, removal: Removal) -> None:
        """A round is over."""


def prune(
    spec: PruneSpec,
    *,
    name: str,
    target: Path,
    models: ModelStore,
    observer: Observer,
    device: str = "auto",
    removals: Sequence[Removal] = (),
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint called ``name`` at ``target``.

    ``removals`` resumes a search behind the rounds it had finished. A search that cannot end, as
    with more removals than free blocks, is refused before the weights are read.
    """
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)
    observer.phase("load")
    dense = models.load(spec.model, dtype=spec.dtype, device=device)
    observer.phase("calibrate")
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    removals = [*removals, *_search(spec, dense, windows, observer, removals)]
    observer.phase("evaluate")
    quality = _quality(spec, dense, removals)
    observer.phase("publish")
    manifest = _manifest(spec, name, dense, windows, removals, quality)
    return publish(target, manifest, lambda path: _write(path, dense, manifest, removals))


class _Observed:
    """A scorer that tells the observer of every candidate it has scored."""

    def __init__(self, scorer: RoundScorer, observer: Observer, done: int, total: int) -> None:
        self._scorer = scorer
        self._observer = observer
        self._done = done
        self._total = total

    def loss(self, keep: Blocks) -> float:
        return self._scorer.loss(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, float]]:
        for scored in self._scorer.score_round(keep, candidates):
            self._done += 1
            self._observer.evaluated(self._done, self._total)
            yield scored


def _search(
    spec: PruneSpec,
    dense: LoadedModel,
    windows: Windows,
    observer: Observer,
    earlier: Sequence[Removal],
) -> Iterator[Removal]:
    blocks = num_blocks(dense.model)
    total = spec.num_evaluations(blocks)
    done = total - spec.num_evaluations(blocks, len(earlier))
    scorer = SharedPrefixScorer(
        dense.model, windows.token_ids, state_bytes=free_bytes(dense.model.device) // 2
    )
    observer.evaluated(done, total)
    for removal in sleb(
        _Observed(scorer, observer, done, total),
        blocks,
        spec.target(blocks),
        protect_first=spec.protect_first,
        protect_last=spec.protect_last,
        removed=[removal.block for removal in earlier],
        dense_loss=earlier[0].dense_loss if earlier else None,
    ):
        observer.removed(removal)
        yield removal


def _quality(spec: PruneSpec, dense: LoadedModel, removals: Sequence[Removal]) -> Quality:
    losses = (removals[0].dense_loss, *(removal.loss for removal in removals))
    if not spec.evaluate:
        return Quality(losses)
    windows = held_out(spec.calibration, dense.model, dense.tokenizer)
    blocks = [removal.block for removal in removals]
    num_windows, seqlen = windows.token_ids.shape
    return Quality(
        losses=losses,
        perplexities=tuple(perplexity_curve(dense.model, blocks, windows.token_ids)),
        evaluated_on=f"{windows.source}, {num_windows} windows of {seqlen} tokens",
    )


def _manifest(
    spec: PruneSpec,
    name: str,
    dense: LoadedModel,
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
    directory: Path, dense: LoadedModel, manifest: Manifest, removals: Sequence[Removal]
) -> None:
    view(dense.model, manifest.keep).save_pretrained(directory)
    for file in _COPIED_FILES:
        if (dense.path / file).is_file():
            shutil.copyfile(dense.path / file, directory / file)
    card = model_card(manifest)
    (directory / "README.md").write_text(card, encoding="utf-8")
    record = json.dumps([asdict(removal) for removal in removals], indent=2)
    (directory / "removal.json").write_text(record + "\n", encoding="utf-8")
