"""The search that a spec asks for: exact or staged, to a count of blocks or to a target."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp
from typing import Protocol

import torch

from pruning.blocks import num_blocks
from pruning.removal import Losses, Removal
from pruning.residence import Residence
from pruning.sleb import Blocks, RoundScorer, sleb
from pruning.spec import PruneSpec, Search, TargetUnreachable
from pruning.staged import StagedScorer, stages


class Observer(Protocol):
    """Told of everything as it happens; may raise to stop the run."""

    def phase(self, phase: str) -> None:
        """``load``, ``calibrate``, ``search``, ``evaluate`` or ``publish`` begins."""

    def evaluated(self, done: int, total: int) -> None:
        """One more candidate was scored, of a total that is known, or of at most so many."""

    def removed(self, removal: Removal) -> None:
        """A round is over."""


def counted(spec: PruneSpec, residence: Residence, num_earlier: int) -> PruneSpec:
    """The spec with a number of blocks instead of a speed-up, from times measured now.

    Blocks that went before stay gone. Raises ``TargetUnreachable``.
    """
    if spec.target_speedup is None:
        return spec
    blocks = num_blocks(residence.model)
    most = spec.most_removals(blocks)
    num_remove = residence.times().removals_for(spec.target_speedup, blocks, most)
    return replace(spec, target_speedup=None, num_remove=max(num_remove, num_earlier))


def search(
    spec: PruneSpec,
    residence: Residence,
    windows: torch.Tensor,
    observer: Observer,
    earlier: Sequence[Removal] = (),
) -> Iterator[Removal]:
    """Yield the removals behind ``earlier`` ones, on calibration ``windows [num_windows, seqlen]``.

    Raises what ``sleb`` raises, and ``TargetUnreachable`` if no removal at all is good enough.
    """
    blocks = num_blocks(residence.model)
    is_staged = spec.search is Search.STAGED
    boundaries = stages(windows.shape[0]) if is_staged else ()
    total = spec.num_evaluations(blocks)
    done = total - spec.num_evaluations(blocks, len(earlier))
    observer.evaluated(done, total)
    with residence.scorer(windows, boundaries) as scorer:
        for removal in sleb(
            _Observed(StagedScorer(scorer) if is_staged else scorer, observer, done, total),
            blocks,
            spec.most_removals(blocks),
            protect_first=spec.protect_first,
            protect_last=spec.protect_last,
            removed=[removal.block for removal in earlier],
            dense_loss=earlier[0].dense_loss if earlier else None,
        ):
            if spec.passes(removal.loss, removal.dense_loss):
                _refuse_none(spec, removal)
                return
            observer.removed(removal)
            yield removal


def _refuse_none(spec: PruneSpec, removal: Removal) -> None:
    if removal.step == 1:
        ratio = exp(removal.loss - removal.dense_loss)
        raise TargetUnreachable(
            "max_perplexity_ratio",
            f"max_perplexity_ratio={spec.max_perplexity_ratio} is passed by the very first "
            f"removal: without block {removal.block} perplexity is {ratio:.4g} times the dense "
            "one on the calibration text; allow more",
        )


class _Observed:
    """A scorer that tells the observer of every candidate it has scored."""

    def __init__(self, scorer: RoundScorer, observer: Observer, done: int, total: int) -> None:
        self._scorer = scorer
        self._observer = observer
        self._done = done
        self._total = total

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        for scored in self._scorer.score_round(keep, candidates):
            self._done += 1
            self._observer.evaluated(self._done, self._total)
            yield scored
