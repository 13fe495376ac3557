"""The search that a spec asks for: exact or staged, to a count of blocks or to a target."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import exp
from types import MappingProxyType
from typing import Protocol

from pruning.blocks import num_blocks
from pruning.calibration import Windows
from pruning.removal import Losses, Removal
from pruning.residence import Residence
from pruning.scoring import WindowScorer
from pruning.search_state import Plan, Scored, SearchState
from pruning.sleb import Blocks, RoundScorer, sleb
from pruning.spec import PruneSpec, Search, TargetUnreachable
from pruning.staged import StagedScorer, stages


class Observer(Protocol):
    """Told of everything as it happens; may raise to stop the run."""

    def phase(self, phase: str) -> None:
        """``load``, ``calibrate``, ``search``, ``evaluate`` or ``publish`` begins."""

    def searching(self, plan: Plan, done: int, total: int) -> None:
        """The search begins, or goes on behind ``done`` candidates that were scored before.

        ``total`` is exact for a count of blocks and otherwise the most that there can be.
        """

    def evaluated(self, done: int, total: int, scored: Scored | None) -> None:
        """One more candidate was scored; with what it takes to resume within the round, if that
        is possible.
        """

    def removed(self, removal: Removal) -> None:
        """A round is over."""


def plan_of(spec: PruneSpec, residence: Residence, windows: Windows, earlier: SearchState) -> Plan:
    """The plan of ``earlier`` if the windows are the same; else a new one, for which a speed-up
    becomes a number of blocks by times measured now. Raises ``TargetUnreachable``.
    """
    if earlier.plan is not None and earlier.plan.windows_digest == windows.digest:
        return earlier.plan
    blocks = num_blocks(residence.model)
    most = spec.most_removals(blocks)
    if spec.target_speedup is not None:
        most = residence.times().removals_for(spec.target_speedup, blocks, most)
    return Plan(windows.digest, most)


def search(
    spec: PruneSpec,
    residence: Residence,
    windows: Windows,
    observer: Observer,
    earlier: SearchState,
) -> list[Removal]:
    """All removals, those of ``earlier`` included if its plan still holds.

    Raises what ``sleb`` raises, and ``TargetUnreachable`` if no removal at all is good enough.
    """
    plan = plan_of(spec, residence, windows, earlier)
    state = earlier if earlier.plan == plan else SearchState(plan)
    removals = list(state.removals)
    blocks = num_blocks(residence.model)
    boundaries = stages(len(windows.token_ids)) if spec.search is Search.STAGED else ()
    total = _num_evaluations(spec, plan, blocks, 0)
    done = total - _num_evaluations(spec, plan, blocks, len(removals))
    with residence.scorer(windows.token_ids, boundaries) as scorer:
        observed = _observed(spec, scorer, observer, state, done, total)
        for removal in sleb(
            observed,
            blocks,
            plan.num_remove,
            protect_first=spec.protect_first,
            protect_last=spec.protect_last,
            removed=[removal.block for removal in removals],
            dense_loss=removals[0].dense_loss if removals else None,
        ):
            if spec.passes(removal.loss, removal.dense_loss):
                _refuse_none(spec, removal)
                break
            removals.append(removal)
            observer.removed(removal)
    return removals


def _num_evaluations(spec: PruneSpec, plan: Plan, blocks: int, num_removed: int) -> int:
    """With the number of blocks as its plan has it, in place of any target."""
    counted = replace(
        spec,
        num_remove=plan.num_remove,
        sparsity=None,
        max_perplexity_ratio=None,
        target_speedup=None,
    )
    return counted.num_evaluations(blocks, num_removed)


def _observed(
    spec: PruneSpec,
    scorer: WindowScorer,
    observer: Observer,
    state: SearchState,
    done: int,
    total: int,
) -> RoundScorer:
    assert state.plan is not None
    if spec.search is Search.STAGED:  # a race depends on who runs in it: whole rounds only
        observer.searching(state.plan, done, total)
        return _Observed(StagedScorer(scorer), observer, done, total)
    observer.searching(state.plan, done + len(state.scored), total)
    return _Observed(
        scorer, observer, done + len(state.scored), total, state.scored, len(state.removals) + 1
    )


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
    """A scorer that tells the observer of every candidate it has scored.

    ``known`` candidates of its first round are not scored again. Without a ``step``, the number of
    that round, nothing is said to resume within a round by.
    """

    def __init__(
        self,
        scorer: RoundScorer,
        observer: Observer,
        done: int,
        total: int,
        known: Mapping[int, Losses] = MappingProxyType({}),
        step: int | None = None,
    ) -> None:
        self._scorer = scorer
        self._observer = observer
        self._done = done
        self._total = total
        self._known = known
        self._step = step

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        known, self._known = self._known, {}
        yield from ((block, known[block]) for block in candidates if block in known)
        unknown = tuple(block for block in candidates if block not in known)
        for block, losses in self._scorer.score_round(keep, unknown):
            self._done += 1
            scored = None if self._step is None else Scored(self._step, block, losses)
            self._observer.evaluated(self._done, self._total, scored)
            yield block, losses
        if self._step is not None:
            self._step += 1
