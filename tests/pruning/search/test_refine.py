"""Exchanges against the loop over all sets, with arbitrary losses, and in whole runs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pruning.models.store import ModelStore
from pruning.removal import Removal, decide, kept
from pruning.search.refine import Exchange, Round, exchange_round, exchanges, ordered
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.search.state import SearchState
from pruning.sleb import sleb
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Repair, Search
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder, Stop
from tests.support.scoring import windows
from tests.support.table_scorer import TableScorer
from tests.support.tiny import NUM_BLOCKS as NUM_TINY_BLOCKS
from tests.support.tiny import tiny_model
from tests.support.tiny_directory import write_tiny_model

Loss = Callable[[set[int]], float]  # of the model without these blocks
NUM_BLOCKS = 8
FREE = tuple(range(1, NUM_BLOCKS - 1))
TINY_FREE = tuple(range(1, NUM_TINY_BLOCKS - 1))


class Table:
    """Losses by the set of removed blocks. Decides rounds, each once, and counts evaluations."""

    def __init__(self, seed: int, grid: int) -> None:
        self._scorer = TableScorer(seed, grid)
        self.known: dict[str, Removal] = {}
        self.scored: set[frozenset[int]] = set()
        self.num_evaluations = 0

    def loss(self, removed: set[int]) -> float:
        return self._scorer.loss(kept(NUM_BLOCKS, removed))

    def decide(self, round_: Round) -> Removal:
        if round_.name not in self.known:
            self.num_evaluations += len(round_.candidates)
            self.scored |= {frozenset((*round_.removed, block)) for block in round_.candidates}
            losses = {b: [self.loss({*round_.removed, b})] for b in round_.candidates}
            self.known[round_.name] = decide(len(round_.removed) + 1, 0.0, losses)
        return self.known[round_.name]

    def greedy(self, num_remove: int) -> list[Removal]:
        """The removals before any exchange, whose last round is known from then on."""
        removals = list(sleb(self._scorer, NUM_BLOCKS, num_remove))
        order = [removal.block for removal in removals]
        self.known[exchange_round(order[:-1], FREE).name] = removals[-1]
        return removals

    def exchanges(self, removals: list[Removal], most: int) -> list[Exchange]:
        order = [removal.block for removal in removals]
        return list(exchanges(self.decide, order, removals[-1].score, FREE, most))


def after(order: list[Removal], found: list[Exchange]) -> Iterator[set[int]]:
    """The set of removed blocks, before and after each exchange."""
    removed = {removal.block for removal in order}
    yield removed
    for exchange in found:
        removed = removed - set(exchange.restored) | set(exchange.removed)
        yield removed


def neighbours(removed: set[int]) -> Iterator[set[int]]:
    """Every set that one exchange of a block leads to, in the order in which ties are decided."""
    for restored in sorted(removed):
        for block in FREE:
            if block not in removed:
                yield removed - {restored} | {block}


seeds = st.integers(0, 10**6)
grids = st.sampled_from([3, 20, 10**9])


@given(seeds, grids, st.integers(3, len(FREE)), st.integers(0, 6))
def test_each_exchange_is_the_best_of_all_and_the_last_set_has_no_better_neighbour(
    seed: int, grid: int, num_remove: int, most: int
) -> None:
    table = Table(seed, grid)
    removals = table.greedy(num_remove)
    found = table.exchanges(removals, most)
    assert len(found) <= most
    sets = list(after(removals, found))
    for number, exchange in enumerate(found, start=1):
        best = min(neighbours(sets[number - 1]), key=table.loss)
        assert sets[number] == best
        scores = (exchange.score_before, exchange.score)
        assert scores == (table.loss(sets[number - 1]), table.loss(best))
        assert exchange.number == number
        assert exchange.score < exchange.score_before
    if len(found) < most:
        ours = table.loss(sets[-1])
        assert all(table.loss(other) >= ours for other in neighbours(sets[-1]))


@given(seeds, grids, st.integers(1, 3))
def test_of_two_removals_the_best_pair_of_all_is_found(seed: int, grid: int, most: int) -> None:
    table = Table(seed, grid)
    removals = table.greedy(2)
    found = table.exchanges(removals, most)
    *_, pair = after(removals, found)
    pairs = [set(other) for other in combinations(FREE, 2)]
    assert len(pairs) == 15
    assert table.loss(pair) == min(map(table.loss, pairs))
    assert len(found) <= 1
    in_greedy_round = {frozenset((removals[0].block, block)) for block in removals[1].scores}
    assert table.scored | in_greedy_round == set(map(frozenset, pairs))


@given(seeds, grids, st.integers(1, len(FREE)), st.integers(0, 4))
def test_no_set_is_scored_twice_and_the_number_of_evaluations_is_bounded(
    seed: int, grid: int, num_remove: int, most: int
) -> None:
    table = Table(seed, grid)
    removals = table.greedy(num_remove)
    found = table.exchanges(removals, most)
    *_, last = after(removals, found)
    spec = PruneSpec("any", num_remove=num_remove, refine=most)
    num_ordering = spec.num_ordering(num_remove)
    bound = spec.num_refining(NUM_BLOCKS, num_remove)
    assert table.num_evaluations <= max(0, bound - num_ordering)
    before = table.num_evaluations
    ordered(table.decide, last)
    assert table.num_evaluations - before == num_ordering == comb(num_remove + 1, 2)


@given(seeds, grids, st.sets(st.sampled_from(FREE), min_size=1))
def test_a_set_is_ordered_as_a_greedy_search_of_its_blocks(
    seed: int, grid: int, removed: set[int]
) -> None:
    table = Table(seed, grid)
    found = ordered(table.decide, removed)
    gone: set[int] = set()
    for step, removal in enumerate(found, start=1):
        left = sorted(removed - gone)
        assert removal.step == step
        assert removal.block == min(left, key=lambda b: table.loss(gone | {b}))
        assert removal.scores == {b: table.loss(gone | {b}) for b in left}
        gone.add(removal.block)
    assert gone == removed


@given(seeds, st.integers(1, len(FREE)))
def test_without_exchanges_the_greedy_order_is_the_order_of_its_set(
    seed: int, num_remove: int
) -> None:
    table = Table(seed, 10**9)
    order = [removal.block for removal in table.greedy(num_remove)]
    assert [removal.block for removal in ordered(table.decide, order)] == order


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(["llama", "opt", "gemma2", "qwen2_moe"]), st.integers(0, 99))
def test_of_two_removals_of_a_real_model_the_best_pair_of_all_is_found(
    family: str, seed: int
) -> None:
    """The pairs are scored one by one, in whole forward passes."""
    model = tiny_model(family, seed)
    plain = PlainScorer(model, windows())
    losses = {
        frozenset(pair): fmean(plain.losses(kept(NUM_TINY_BLOCKS, pair)))
        for pair in combinations(TINY_FREE, 2)
    }
    removals, found = refined_pair(model)
    *_, pair = after(removals, found)
    assert losses[frozenset(pair)] == pytest.approx(min(losses.values()), abs=1e-5)


def refined_pair(model: PreTrainedModel) -> tuple[list[Removal], list[Exchange]]:
    """The two removals of a greedy search of a tiny model, and the exchanges of them."""
    scorer = SharedPrefixScorer(model, windows())
    removals = list(sleb(scorer, NUM_TINY_BLOCKS, 2))

    def score(round_: Round) -> Removal:
        keep = kept(NUM_TINY_BLOCKS, round_.removed)
        return decide(2, 0.0, dict(scorer.score_round(keep, round_.candidates)))

    order = [removal.block for removal in removals]
    return removals, list(exchanges(score, order, removals[-1].score, TINY_FREE, 5))


def test_both_blocks_of_a_pair_are_exchanged_on_a_real_model() -> None:
    """No exchange of one block leads from (3, 4) to the best pair, (1, 2)."""
    model = tiny_model("opt", 5)
    _, [exchange] = refined_pair(model)
    assert (exchange.restored, exchange.removed) == ((3, 4), (1, 2))
    loss = fmean(PlainScorer(model, windows()).losses(kept(NUM_TINY_BLOCKS, (1, 2))))
    assert exchange.score == pytest.approx(loss, abs=1e-5)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "models" / "tiny", num_blocks=NUM_BLOCKS, seed=4)
    return tmp_path / "models"


@pytest.fixture
def spec(tmp_path: Path) -> PruneSpec:
    """A search whose greedy order, 2 4 5 6, gains by an exchange of 4 for 3."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=24, seqlen=8, path=str(text))
    return PruneSpec("tiny", num_remove=4, calibration=calibration, refine=3, repair=Repair.NONE)


@pytest.mark.parametrize("search", Search)
def test_a_refined_run_publishes_the_better_set_with_a_loss_for_every_depth(
    models_dir: Path, spec: PruneSpec, search: Search
) -> None:
    recorder = Recorder()
    found, path = prune_tiny(models_dir, replace(spec, search=search), "tiny@refined", recorder)
    assert [removal.block for removal in recorder.removals] == [2, 4, 5, 6]
    [exchange] = recorder.exchanges
    assert (exchange.restored, exchange.removed) == ((4,), (3,))
    assert sorted(found.removed_blocks) == [2, 3, 5, 6]
    assert recorder.refined is not None
    assert found.removed_blocks == tuple(removal.block for removal in recorder.refined)
    assert found.quality.losses[4] == pytest.approx(exchange.score, abs=1e-6)
    assert found.quality.losses[4] < recorder.removals[3].loss
    dense = ModelStore(models_dir).load("tiny")
    recorded = json.loads((path / "removal.json").read_text())
    assert [entry["loss"] for entry in recorded] == list(found.quality.losses[1:])
    assert len(found.quality.perplexities) == 5
    assert dense.model.config.num_hidden_layers == NUM_BLOCKS


def test_the_number_of_evaluations_is_an_upper_bound_until_the_exchanges_end(
    models_dir: Path, spec: PruneSpec
) -> None:
    recorder = Recorder()
    prune_tiny(models_dir, spec, "tiny@refined", recorder)
    counts, totals = zip(*recorder.evaluations, strict=True)
    greedy, of_exchange, ordering = 6 + 5 + 4 + 3, 3 * 3, 4 + 3 + 2 + 1
    assert totals[0] == greedy + 3 * of_exchange + ordering == spec.num_evaluations(NUM_BLOCKS)
    assert sorted(totals, reverse=True) == list(totals)
    assert counts[-1] == totals[-1] == greedy + 2 * of_exchange + ordering
    unchanged = replace(spec, num_remove=3)
    recorder = Recorder()
    prune_tiny(models_dir, unchanged, "tiny@unchanged", recorder)
    assert recorder.refined is None
    assert recorder.evaluations[-1] == (6 + 5 + 4 + 2 * 4,) * 2


@pytest.mark.parametrize("stop_after", [3, 18, 19, 27, 29, 36, 37, 44, 45])
def test_a_refinement_resumes_wherever_it_was_stopped(
    models_dir: Path, spec: PruneSpec, stop_after: int
) -> None:
    """In the greedy rounds, in the first and the second look at exchanges, and in the order."""
    whole, first, again = Recorder(), Recorder(stop_after=stop_after), Recorder()
    expected, _ = prune_tiny(models_dir, spec, "tiny@whole", whole)
    with pytest.raises(Stop):
        prune_tiny(models_dir, spec, "tiny@stopped", first)
    found, _ = prune_tiny(models_dir, spec, "tiny@resumed", again, first.state)
    assert found.removed_blocks == expected.removed_blocks
    assert found.quality == expected.quality
    assert again.refined == whole.refined
    assert first.rounds | again.rounds == whole.rounds
    assert first.exchanges + again.exchanges == whole.exchanges
    assert again.evaluations[0][0] == stop_after
    assert again.evaluations[-1] == whole.evaluations[-1]
    assert len(first.scored) + len(again.scored) == len(whole.scored)


def test_a_staged_refinement_resumes_within_a_round(models_dir: Path, spec: PruneSpec) -> None:
    spec = replace(spec, search=Search.STAGED)
    whole, first, again = Recorder(), Recorder(stop_after=23), Recorder()
    expected, _ = prune_tiny(models_dir, spec, "tiny@whole", whole)
    with pytest.raises(Stop):
        prune_tiny(models_dir, spec, "tiny@stopped", first)
    found, _ = prune_tiny(models_dir, spec, "tiny@resumed", again, first.state)
    assert found.quality == expected.quality
    assert len(first.rounds) == 1
    assert again.evaluations[0][0] == 23 > 18 + 3


def test_the_depth_of_a_ratio_is_that_of_the_greedy_search(
    models_dir: Path, spec: PruneSpec
) -> None:
    """On this text the loss of a random model falls with every removal, so all are allowed."""
    target = replace(spec, num_remove=None, max_perplexity_ratio=1e6)
    recorder = Recorder()
    found, _ = prune_tiny(models_dir, target, "tiny@ratio", recorder)
    assert sorted(found.removed_blocks) == list(FREE)
    bounds = [target.num_refining(NUM_BLOCKS, depth) for depth in range(1, 7)]
    assert recorder.evaluations[0] == (0, 6 + 5 + 4 + 3 + 2 + 1 + max(bounds))
    assert recorder.evaluations[-1] == (21 + 5,) * 2


def test_a_state_of_another_search_is_no_part_of_a_refinement(
    models_dir: Path, spec: PruneSpec
) -> None:
    first, again = Recorder(stop_after=30), Recorder()
    with pytest.raises(Stop):
        prune_tiny(models_dir, spec, "tiny@stopped", first)
    other = replace(first.state, plan=replace(first.plans[0], windows_digest="other"))
    prune_tiny(models_dir, spec, "tiny@resumed", again, other)
    assert again.evaluations[0][0] == 0
    assert SearchState().decided == {}


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.ONE_SHOT])
def test_a_ranking_is_not_refined(metric: Metric) -> None:
    with pytest.raises(InvalidSpec, match="refine=2 needs the rounds") as refused:
        PruneSpec("tiny", num_remove=2, metric=metric, refine=2)
    assert refused.value.param == "refine"
    with pytest.raises(InvalidSpec, match="0 or more"):
        PruneSpec("tiny", num_remove=2, refine=-1)
