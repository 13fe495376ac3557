"""The search of a run: any metric, exact or staged, to a number of blocks or to a target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import exp, isfinite
from statistics import fmean

from pruning.data.windows import Windows
from pruning.models.blocks import num_blocks
from pruning.models.safetensors_headers import fingerprint
from pruning.removal import Losses, NonFiniteLoss, Removal, by_domain, decide, kept
from pruning.search.dense_model import DenseModel
from pruning.search.objective import Objective
from pruning.search.observed import ObservedRanker, ObservedScorer, Observer, Tally
from pruning.search.ranking import Ranker, ranked
from pruning.search.refine import Round, RoundKind, exchange_round, exchanges, ordered
from pruning.search.staged import stages
from pruning.search.state import RANKING, SearchPlan, SearchState, num_whole, round_name
from pruning.search.target import planned_removals
from pruning.search.window_scorer import GrowingScorer
from pruning.sleb import Blocks, sleb
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
    ``InvalidSpec`` if the model's family cannot be scored as the spec says.
    """
    objective = Objective.of(spec, dense.model.config)
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
    with dense.scorer(windows.token_ids, boundaries, objective) as scorer:
        observer.searching(plan, tally.done, total)
        run = _Search(spec, dense, windows, scorer, plan, state, observer, tally)
        removals = run.greedy()
        return run.refined(removals) if spec.refine else removals


@dataclass(frozen=True)
class _Search:
    """A search in progress. ``state`` is where it began, ``decided`` what it knows by now."""

    spec: PruneSpec
    dense: DenseModel
    windows: Windows
    scorer: GrowingScorer
    plan: SearchPlan
    state: SearchState
    observer: Observer
    tally: Tally
    decided: dict[str, Removal] = field(default_factory=dict)
    latest: dict[int, Losses] = field(default_factory=dict)  # of the candidates of a round

    @property
    def num_blocks(self) -> int:
        return num_blocks(self.dense.model)

    def greedy(self) -> list[Removal]:
        """The removals of ``sleb`` or ``ranked``."""
        spec, removals = self.spec, list(self.state.removals)
        for removal in self._algorithm()(
            self.num_blocks,
            self.plan.num_remove,
            protect_first=spec.protect_first,
            protect_last=spec.protect_last,
            removed=[removal.block for removal in removals],
            dense_loss=removals[0].dense_loss if removals else None,
        ):
            removed = [*(earlier.block for earlier in removals), removal.block]
            measured = self._with_loss(removal, removed)
            if spec.exceeds(measured.loss, measured.dense_loss):
                _refuse_none(spec, measured)
                break
            removals.append(measured)
            self.observer.removed(measured)
        return removals

    def refined(self, removals: list[Removal]) -> list[Removal]:
        """The removals after as many exchanges as help, or as the spec allows."""
        order = [removal.block for removal in removals]
        free = tuple(range(self.spec.protect_first, self.num_blocks - self.spec.protect_last))
        self.decided.update(self.state.decided)
        self.decided[exchange_round(order[:-1], free).name] = removals[-1]
        choose = partial(self._decide, dense_loss=removals[0].dense_loss)
        self._expect(self.spec.num_refining(self.num_blocks, len(order)))
        found, num_known = set(order), len(self.decided)
        for exchange in exchanges(choose, order, removals[-1].score, free, self.spec.refine):
            found = found - set(exchange.restored) | set(exchange.removed)
            if len(self.decided) > num_known:  # otherwise an earlier process has reported it
                self.observer.exchanged(exchange)
            num_known = len(self.decided)
        if found == set(order):
            self.tally.expect(0)
            return removals
        self._expect(self.spec.num_ordering(len(order)), RoundKind.ORDER)
        refined = ordered(choose, found)
        if self.spec.exceeds(refined[-1].loss, refined[-1].dense_loss):
            return removals  # a lower divergence, and yet a higher loss
        self.observer.reordered(refined)
        return refined

    def _algorithm(self) -> Callable[..., Iterator[Removal]]:
        """``sleb`` or ``ranked`` with their scorers, for the arguments that they share."""
        observed = self._observed(lambda keep: round_name(self.num_blocks - len(keep) + 1))
        if self.spec.metric.has_rounds:
            return partial(sleb, observed)
        ranking: Ranker = self._observed(lambda _keep: RANKING)
        if self.spec.metric is Metric.COSINE:
            ranker = self.dense.cosine_ranker(self.windows.token_ids)
            ranking = ObservedRanker(ranker, self.tally, self.state.scored, RANKING)
        return partial(ranked, observed, ranking)

    def _observed(self, name: Callable[[Blocks], str]) -> ObservedScorer:
        is_staged = self.spec.search is Search.STAGED
        given = (self.scorer, self.tally, self.state.scored, name, self.latest)
        return ObservedScorer(*given, is_staged=is_staged)

    def _decide(self, round_: Round, dense_loss: float) -> Removal:
        """Score and decide a round of the refinement, unless its decision is known."""
        name = round_.name
        known = self.decided.get(name)
        if known is None or known.block not in round_.candidates:
            keep = kept(self.num_blocks, round_.removed)
            scored = self._observed(lambda _keep: name).score_round(keep, round_.candidates)
            found = decide(len(round_.removed) + 1, dense_loss, dict(scored))
            if round_.kind is RoundKind.ORDER:
                found = self._with_loss(found, [*round_.removed, found.block])
            self.decided[name] = found
            self.observer.decided(name, self.decided[name])
        return self.decided[name]

    def _with_loss(self, removal: Removal, removed: Sequence[int]) -> Removal:
        """The removal with its losses by domain, and with the loss after it, where the round was
        decided by something else.
        """
        losses = self.latest.get(removal.block, ())
        if self.spec.metric is Metric.KL:
            losses = self.scorer.losses(kept(self.num_blocks, removed))
            loss = fmean(losses)
            if not isfinite(loss):
                raise NonFiniteLoss(
                    f"step {removal.step}: loss {loss} without the blocks {removed}"
                )
            removal = replace(removal, loss=loss)
        return replace(removal, domain_losses=by_domain(losses, self.windows.domains))

    def _expect(self, most: int, kind: str = "") -> None:
        """``most`` evaluations remain, of which those of the ``kind`` in the state are known."""
        num_windows = len(self.windows.token_ids)
        self.tally.expect(most - _num_refined(self.state, num_windows, kind))


def _num_left(spec: PruneSpec, state: SearchState, blocks: int, num_windows: int) -> int:
    """How many evaluations remain after ``state``, at most."""
    num_removed = len(state.removals)
    left = spec.num_evaluations(blocks, num_removed) - _num_refined(state, num_windows)
    left -= num_whole(state.scored_in(round_name(num_removed + 1)), num_windows)
    ranking = state.scored_in(RANKING)
    if spec.metric.has_rounds or not num_removed:
        return left - num_whole(ranking, num_windows)
    known = {*ranking, *(removal.block for removal in state.removals)}
    return left + len(set(range(spec.protect_first, blocks - spec.protect_last)) - known)


def _num_refined(state: SearchState, num_windows: int, kind: str = "") -> int:
    """How many evaluations of the refinement are in the state, of one kind of rounds or of all."""
    kinds = [kind] if kind else [each.value for each in RoundKind]
    counts = {name: len(removal.scores) for name, removal in state.decided.items()}
    for name, scored in state.scored.items():
        counts.setdefault(name, num_whole(scored, num_windows))
    return sum(number for name, number in counts.items() if name.startswith(tuple(kinds)))


def _refuse_none(spec: PruneSpec, removal: Removal) -> None:
    if removal.step == 1:
        ratio = exp(removal.loss - removal.dense_loss)
        raise TargetUnreachable(
            "max_perplexity_ratio",
            f"max_perplexity_ratio={spec.max_perplexity_ratio} is exceeded by the first "
            f"removal: without block {removal.block} perplexity is {ratio:.4g} times the dense "
            "one on the calibration text; allow more",
        )
