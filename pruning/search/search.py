"""The search of a run: any metric, exact or staged, to a number of blocks or to a target."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp

from pruning.data.windows import Windows
from pruning.models.block_bytes import removals_for_bytes
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import block_list, num_blocks
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import DTYPE_BYTES, dtype_name, num_parameters, read_config
from pruning.removal import Losses, Removal, by_domain, decide, kept
from pruning.search.dense_model import DenseModel
from pruning.search.observed import ObservedScorer, Observer, Tally
from pruning.search.ranking import Ranking
from pruning.search.staged import GrowingScorer, stages
from pruning.search.state import (
    RANKING,
    ScoredCandidate,
    SearchPlan,
    SearchState,
    num_whole,
    round_name,
)
from pruning.sleb import Blocks, RoundScorer, sleb
from pruning.spec import TargetUnreachable
from pruning.spec.prune import Metric, PruneSpec, Search


def plan_of(
    spec: PruneSpec, dense: DenseModel, windows: Windows, earlier: SearchState
) -> SearchPlan:
    """The plan of ``earlier`` if the windows and the model are the same, or else a new one.

    A new plan turns a target of speed or bytes into a number of blocks, by times measured now.
    Raises ``TargetUnreachable``.
    """
    of_model = fingerprint(dense.path)
    blocks = num_blocks(dense.model)
    most = spec.most_removals(blocks)
    known = earlier.plan
    if known and known.holds_for(windows.digest, of_model) and known.num_remove <= most:
        return known
    times = dense.times()
    return SearchPlan(windows.digest, planned_removals(spec, dense, times), times, of_model)


def search(
    spec: PruneSpec,
    dense: DenseModel,
    windows: Windows,
    observer: Observer,
    earlier: SearchState,
) -> list[Removal]:
    """All removals, including those of ``earlier`` if its plan is still valid.

    Raises what ``sleb`` raises, ``TargetUnreachable`` if even the first removal is too much, and
    ``InvalidSpec`` for a spec of an older release that this one cannot search by.
    """
    spec.check_runnable()
    plan = plan_of(spec, dense, windows, earlier)
    if spec.is_depth_planned:
        count = plan.num_remove
        spec = replace(spec, target_speedup=None, target_bytes=None, num_remove=count)
    blocks, num_windows = num_blocks(dense.model), len(windows.token_ids)
    state = SearchState(plan)
    if earlier.plan == plan:
        free = range(spec.protect_first, blocks - spec.protect_last)
        state = earlier.within(free, num_windows)
    boundaries = stages(num_windows) if spec.search is Search.STAGED else ()
    total = spec.num_evaluations(blocks)
    tally = Tally(observer, total - _num_left(spec, state, blocks, num_windows), total)
    by_divergence = spec.metric is Metric.KL
    with dense.scorer(windows.token_ids, boundaries, by_divergence=by_divergence) as scorer:
        observer.searching(plan, tally.done, total)
        run = _Search(spec, dense, windows, scorer, plan, state, observer, tally)
        return run.removals()


def planned_removals(spec: PruneSpec, dense: DenseModel, times: BlockTimes) -> int:
    """The number of blocks to remove, or an upper bound for ``max_perplexity_ratio``.

    Raises ``TargetUnreachable``.
    """
    blocks = num_blocks(dense.model)
    most = spec.most_removals(blocks)
    if spec.target_speedup is not None:
        return times.removals_for(spec.target_speedup, blocks, most)
    if spec.target_bytes is not None:
        name = spec.published_dtype
        item_bytes = DTYPE_BYTES[dtype_name(read_config(dense.path)) if name == "auto" else name]
        free = list(block_list(dense.model))[spec.protect_first : blocks - spec.protect_last]
        sizes = [item_bytes * sum(each.numel() for each in block.parameters()) for block in free]
        total = item_bytes * num_parameters(dense.model)
        return removals_for_bytes(spec.target_bytes, total, sizes, most)
    return most


@dataclass(frozen=True)
class _Search:
    """A search in progress. ``state`` is where it began."""

    spec: PruneSpec
    dense: DenseModel
    windows: Windows
    scorer: GrowingScorer
    plan: SearchPlan
    state: SearchState
    observer: Observer
    tally: Tally

    @property
    def num_blocks(self) -> int:
        return num_blocks(self.dense.model)

    def removals(self) -> list[Removal]:
        """The removals of ``sleb``, with the losses after them."""
        spec, removals = self.spec, list(self.state.removals)
        for removal in sleb(
            self._scorer(),
            self.num_blocks,
            self.plan.num_remove,
            protect_first=spec.protect_first,
            protect_last=spec.protect_last,
            removed=[removal.block for removal in removals],
            dense_loss=removals[0].dense_loss if removals else None,
        ):
            removed = [*(earlier.block for earlier in removals), removal.block]
            measured = self._with_loss(removal, removed)
            measured = replace(measured, dense_domain_losses=self._dense_domain_losses(removals))
            if spec.exceeds(measured.loss, measured.dense_loss):
                _refuse_none(spec, measured)
                break
            removals.append(measured)
            self.observer.removed(measured)
        return removals

    def _scorer(self) -> RoundScorer:
        """What rounds are decided by."""
        if self.spec.metric.has_rounds:
            return self.rounds
        of_dense = self._observed(lambda _keep: RANKING).score_round
        rank = self._cosines if self.spec.metric is Metric.COSINE else of_dense
        return Ranking(self.rounds, rank, tuple(range(self.num_blocks)))

    @cached_property
    def rounds(self) -> ObservedScorer:
        """The scorer of rounds that each remove a block."""
        return self._observed(lambda keep: round_name(self.num_blocks - len(keep) + 1))

    def _cosines(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        """Their cosines; those that are not recorded yet are measured and reported."""
        known = self.state.scored_in(RANKING)
        yield from ((block, known[block]) for block in candidates if block in known)
        unknown = tuple(block for block in candidates if block not in known)
        for block, scores in self.dense.cosines(self.windows.token_ids, keep, unknown):
            scored = ScoredCandidate(RANKING, block, scores)
            self.tally.reach(self.tally.done + 1, scored, is_whole=True)
            yield block, scores

    def _observed(self, name: Callable[[Blocks], str]) -> ObservedScorer:
        is_staged = self.spec.search is Search.STAGED
        return ObservedScorer(self.scorer, self.tally, self.state.scored, name, is_staged)

    def _with_loss(self, removal: Removal, removed: Sequence[int]) -> Removal:
        """The removal with the loss after it, whatever the round was decided by, and by domain."""
        block = removal.block
        if self.spec.metric is Metric.KL:
            losses = self.scorer.losses(kept(self.num_blocks, removed))
        elif self.spec.metric.has_rounds:
            losses = self.rounds.latest[block]
        else:
            keep = kept(self.num_blocks, removed[:-1])
            [(_, losses)] = self.rounds.score_round(keep, (block,))
        loss = decide(removal.step, removal.dense_loss, {block: losses}).loss
        return replace(removal, loss=loss, domain_losses=by_domain(losses, self.windows.domains))

    def _dense_domain_losses(self, removals: Sequence[Removal]) -> Mapping[str, float]:
        if removals:
            return removals[0].dense_domain_losses
        losses = self.rounds.models[tuple(range(self.num_blocks))]
        return by_domain(losses, self.windows.domains)


def _num_left(spec: PruneSpec, state: SearchState, blocks: int, num_windows: int) -> int:
    """How many evaluations remain after ``state``, at most."""
    num_removed = len(state.removals)
    left = spec.num_evaluations(blocks, num_removed)
    left -= num_whole(state.scored_in(round_name(num_removed + 1)), num_windows)
    ranking = state.scored_in(RANKING)
    if spec.metric.has_rounds or not num_removed:
        return left - num_whole(ranking, num_windows)
    known = {*ranking, *(removal.block for removal in state.removals)}
    return left + len(set(range(spec.protect_first, blocks - spec.protect_last)) - known)


def _refuse_none(spec: PruneSpec, removal: Removal) -> None:
    if removal.step == 1:
        ratio = exp(removal.loss - removal.dense_loss)
        raise TargetUnreachable(
            "max_perplexity_ratio",
            f"max_perplexity_ratio={spec.max_perplexity_ratio} is exceeded by the first "
            f"removal: without block {removal.block}, the perplexity is {ratio:.4g} times "
            "the dense one on the calibration text; raise the limit",
        )
