"""The search of a run: any metric, exact or staged, to a number of blocks or to a target."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import exp
from types import MappingProxyType
from typing import Protocol

from pruning.data.windows import Windows
from pruning.models.blocks import num_blocks
from pruning.removal import Losses, Removal
from pruning.search.dense_model import DenseModel
from pruning.search.ranking import Ranker, ranked
from pruning.search.scoring import WindowScorer
from pruning.search.staged import StagedScorer, stages
from pruning.search.state import RANKING, ScoredCandidate, SearchPlan, SearchState
from pruning.sleb import Blocks, RoundScorer, sleb
from pruning.spec import TargetUnreachable
from pruning.spec.prune import Metric, PruneSpec, Search


class Observer(Protocol):
    """Receives progress; an exception from it stops the run."""

    def phase(self, phase: str) -> None:
        """A phase begins: ``load``, ``calibrate``, ``search``, ``evaluate`` or ``publish``."""

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        """The search begins, or resumes after ``done`` evaluations.

        ``total`` is exact for a number of blocks, and otherwise an upper bound.
        """

    def evaluated(self, done: int, total: int, scored: ScoredCandidate | None) -> None:
        """One more candidate was evaluated. ``scored`` has its losses if the search can resume
        within the round.
        """

    def removed(self, removal: Removal) -> None:
        """A round has been decided."""


def plan_of(
    spec: PruneSpec, dense: DenseModel, windows: Windows, earlier: SearchState
) -> SearchPlan:
    """The plan of ``earlier`` if the windows are the same, or else a new one.

    A new plan turns a target speed-up into a number of blocks, by times measured now. Raises
    ``TargetUnreachable``.
    """
    if earlier.plan is not None and earlier.plan.windows_digest == windows.digest:
        return earlier.plan
    blocks = num_blocks(dense.model)
    most = spec.most_removals(blocks)
    if spec.target_speedup is not None:
        most = dense.times().removals_for(spec.target_speedup, blocks, most)
    return SearchPlan(windows.digest, most)


def search(
    spec: PruneSpec,
    dense: DenseModel,
    windows: Windows,
    observer: Observer,
    earlier: SearchState,
) -> list[Removal]:
    """All removals, including those of ``earlier`` if its plan is still valid.

    Raises what ``sleb`` raises, and ``TargetUnreachable`` if even the first removal is too much.
    """
    plan = plan_of(spec, dense, windows, earlier)
    state = earlier if earlier.plan == plan else SearchState(plan)
    removals = list(state.removals)
    blocks = num_blocks(dense.model)
    boundaries = stages(len(windows.token_ids)) if spec.search is Search.STAGED else ()
    total = _num_evaluations(spec, plan, blocks, 0)
    tally = _Tally(observer, total - _num_left(spec, plan, state, blocks), total)
    with dense.scorer(windows.token_ids, boundaries) as scorer:
        observer.searching(plan, tally.done, total)
        choose = _chooser(spec, dense, windows, scorer, state, tally)
        for removal in choose(
            blocks,
            plan.num_remove,
            protect_first=spec.protect_first,
            protect_last=spec.protect_last,
            removed=[removal.block for removal in removals],
            dense_loss=removals[0].dense_loss if removals else None,
        ):
            if spec.exceeds(removal.loss, removal.dense_loss):
                _refuse_none(spec, removal)
                break
            removals.append(removal)
            observer.removed(removal)
    return removals


def _chooser(
    spec: PruneSpec,
    dense: DenseModel,
    windows: Windows,
    scorer: WindowScorer,
    state: SearchState,
    tally: "_Tally",
) -> Callable[..., Iterator[Removal]]:
    """``sleb`` or ``ranked`` with their scorers; the arguments that they share are left open."""
    if (
        spec.search is Search.STAGED
    ):  # a stage depends on all candidates, so only whole rounds resume
        return partial(sleb, _ObservedScorer(StagedScorer(scorer), tally))
    step = len(state.removals) + 1
    observed = _ObservedScorer(scorer, tally, step, state.scored)
    if spec.metric is Metric.SLEB:
        return partial(sleb, observed)
    is_cosine = spec.metric is Metric.COSINE
    ranker: Ranker = dense.cosine_ranker(windows.token_ids) if is_cosine else scorer
    return partial(ranked, observed, _Observed(ranker, tally, RANKING, state.ranking))


def _num_evaluations(spec: PruneSpec, plan: SearchPlan, blocks: int, num_removed: int) -> int:
    """As ``PruneSpec.num_evaluations``, with the plan's number of blocks as the target."""
    counted = replace(
        spec,
        num_remove=plan.num_remove,
        sparsity=None,
        max_perplexity_ratio=None,
        target_speedup=None,
    )
    return counted.num_evaluations(blocks, num_removed)


def _num_left(spec: PruneSpec, plan: SearchPlan, state: SearchState, blocks: int) -> int:
    """How many evaluations remain after ``state``."""
    left = _num_evaluations(spec, plan, blocks, len(state.removals)) - len(state.scored)
    if spec.search is Search.STAGED:
        return left + len(state.scored)
    if spec.metric is Metric.SLEB or not state.removals:
        return left - len(state.ranking)
    known = {*state.ranking, *(removal.block for removal in state.removals)}
    return left + len(set(range(spec.protect_first, blocks - spec.protect_last)) - known)


def _refuse_none(spec: PruneSpec, removal: Removal) -> None:
    if removal.step == 1:
        ratio = exp(removal.loss - removal.dense_loss)
        raise TargetUnreachable(
            "max_perplexity_ratio",
            f"max_perplexity_ratio={spec.max_perplexity_ratio} is exceeded by the first "
            f"removal: without block {removal.block} perplexity is {ratio:.4g} times the dense "
            "one on the calibration text; allow more",
        )


class _Tally:
    """Counts evaluations and reports each to the observer."""

    def __init__(self, observer: Observer, done: int, total: int) -> None:
        self.done = done
        self._observer = observer
        self._total = total

    def add(self, scored: ScoredCandidate | None) -> None:
        self.done += 1
        self._observer.evaluated(self.done, self._total, scored)


class _Observed:
    """A ranker that reports every candidate it scores.

    ``step`` is the number of its first round, in which ``known`` candidates are not scored again.
    Without a ``step``, the search cannot resume within a round.
    """

    def __init__(
        self,
        ranker: Ranker,
        tally: _Tally,
        step: int | None = None,
        known: Mapping[int, Losses] = MappingProxyType({}),
    ) -> None:
        self._ranker = ranker
        self._tally = tally
        self._step = step
        self._known = known

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        known, self._known = self._known, {}
        yield from ((block, known[block]) for block in candidates if block in known)
        unknown = tuple(block for block in candidates if block not in known)
        for block, losses in self._ranker.score_round(keep, unknown):
            self._tally.add(
                None if self._step is None else ScoredCandidate(self._step, block, losses)
            )
            yield block, losses
        if self._step is not None:
            self._step += 1


class _ObservedScorer(_Observed):
    def __init__(
        self,
        scorer: RoundScorer,
        tally: _Tally,
        step: int | None = None,
        known: Mapping[int, Losses] = MappingProxyType({}),
    ) -> None:
        super().__init__(scorer, tally, step, known)
        self._scorer = scorer

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)
