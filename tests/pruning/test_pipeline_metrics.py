"""Whole runs with metrics 1 and 2 of the paper: what they publish, and how they resume."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from pruning.checkpoints.store import Manifest
from pruning.data.calibration import calibrate
from pruning.models.store import load
from pruning.models.streaming import ResidentModel
from pruning.removal import Losses, NonFiniteLoss
from pruning.search.cosine import cosines
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.search.state import RANKING, SearchState
from pruning.sleb import Blocks
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Repair, Resident, Search
from tests.support.pruning_runs import prune_tiny
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny_directory import NUM_BLOCKS, write_tiny_model

ONCE = [Metric.COSINE, Metric.ONE_SHOT]
FREE, NUM_REMOVE = 4, 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> PruneSpec:
    text = tmp_path_factory.mktemp("texts") / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=6, seqlen=8, path=str(text))
    return PruneSpec("tiny", num_remove=NUM_REMOVE, calibration=calibration, repair=Repair.NONE)


Unstopped = Callable[[Metric], tuple[Manifest, Path]]


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory, spec: PruneSpec) -> Unstopped:
    """A run that was not stopped and measures no other text, once for each metric."""
    models_dir = tmp_path_factory.mktemp("unstopped") / "models"
    write_tiny_model(models_dir / "tiny")

    @cache
    def run(metric: Metric) -> tuple[Manifest, Path]:
        asked = replace(spec, metric=metric, evaluate=False)
        return prune_tiny(models_dir, asked, f"tiny@{metric}")

    return run


def removals_in(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((path / "removal.json").read_text())
    return found


@pytest.mark.parametrize("metric", ONCE)
def test_a_ranking_publishes_what_a_search_does_with_measured_losses(
    metric: Metric, tiny_models_dir: Path, spec: PruneSpec
) -> None:
    recorder = Recorder()
    found, path = prune_tiny(tiny_models_dir, replace(spec, metric=metric), "tiny@other", recorder)
    greedy, greedy_path = prune_tiny(tiny_models_dir, spec, "tiny@sleb")
    assert {file.name for file in path.iterdir()} == {file.name for file in greedy_path.iterdir()}
    assert [r.keys() for r in removals_in(path)] == [r.keys() for r in removals_in(greedy_path)]
    assert found.spec["metric"] == metric
    loaded = load(tiny_models_dir / "tiny")
    windows = calibrate(spec.calibration, loaded.model, loaded.tokenizer)
    oracle = PlainScorer(loaded.model, windows.token_ids)
    for step, loss in enumerate(found.quality.losses):
        measured = oracle.losses(found.keep_after(step))
        assert loss == pytest.approx(sum(measured) / len(measured), abs=1e-5)
    assert len(found.quality.perplexities) == NUM_REMOVE + 1
    first = recorder.removals[0]
    assert found.quality.losses[0] == greedy.quality.losses[0]
    if metric is Metric.ONE_SHOT:
        assert found.removed_blocks[0] == greedy.removed_blocks[0]
        assert found.quality.losses[1] == greedy.quality.losses[1]
    else:
        dense, every = ResidentModel(loaded.model), tuple(range(NUM_BLOCKS))
        scores = dict(cosines(dense, windows.token_ids, every, tuple(range(1, 5))))
        means = {block: sum(values) / len(values) for block, values in scores.items()}
        assert first.scores == pytest.approx(means)
        assert list(found.removed_blocks) == sorted(means, key=means.__getitem__)[:NUM_REMOVE]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ONCE)
def test_streamed_blocks_and_whole_models_give_the_same_order(
    metric: Metric, tiny_models_dir: Path, spec: PruneSpec
) -> None:
    spec = replace(spec, metric=metric, evaluate=False)
    whole, _ = prune_tiny(tiny_models_dir, spec, "tiny@whole")
    streamed, _ = prune_tiny(
        tiny_models_dir, replace(spec, resident=Resident.STREAM), "tiny@streamed"
    )
    assert streamed.removed_blocks == whole.removed_blocks
    assert streamed.quality.losses == pytest.approx(whole.quality.losses, abs=1e-5)


@pytest.mark.parametrize("metric", ONCE)
def test_progress_is_exact(metric: Metric, tiny_models_dir: Path, spec: PruneSpec) -> None:
    recorder = Recorder()
    spec = replace(spec, metric=metric, evaluate=False)
    prune_tiny(tiny_models_dir, spec, "tiny@counted", recorder)
    total = spec.num_evaluations(NUM_BLOCKS)
    assert total == FREE + NUM_REMOVE
    assert {each for _, each in recorder.evaluations} == {total}
    done = [done for done, _ in recorder.evaluations]
    assert (done[0], done[-1]) == (0, total)
    assert all(later - earlier == 1 for earlier, later in pairwise(done))


@pytest.mark.parametrize(
    "stop_after",
    # in the ranking, and between two measured losses
    slow_but(range(1, FREE + NUM_REMOVE), 2, FREE + 2),
)
@pytest.mark.parametrize("metric", ONCE)
def test_wherever_it_is_stopped_it_goes_on_and_repeats_nothing(
    metric: Metric, stop_after: int, tiny_models_dir: Path, spec: PruneSpec, unstopped: Unstopped
) -> None:
    spec = replace(spec, metric=metric, evaluate=False)
    whole, whole_path = unstopped(metric)
    first, again = Recorder(stop_after=stop_after), Recorder()
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, spec, "tiny@stopped", first)
    resumed, path = prune_tiny(tiny_models_dir, spec, "tiny@resumed", again, first.state)
    assert resumed.removed_blocks == whole.removed_blocks
    assert resumed.quality.losses == whole.quality.losses
    assert (path / "removal.json").read_bytes() == (whole_path / "removal.json").read_bytes()
    total = FREE + NUM_REMOVE
    assert again.evaluations[0] == (stop_after, total)
    assert [done for done, _ in again.evaluations] == list(range(stop_after, total + 1))


def test_a_ranking_that_lost_some_of_its_scores_measures_those_again(
    tiny_models_dir: Path, spec: PruneSpec, unstopped: Unstopped
) -> None:
    """As after an outage of the store."""
    spec = replace(spec, metric=Metric.ONE_SHOT, evaluate=False)
    first, again = Recorder(stop_after=FREE + 2), Recorder()
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, spec, "tiny@stopped", first)
    gone = {removal.block for removal in first.removals}
    known = first.state.scored_in(RANKING)
    lost = next(block for block in known if block not in gone)
    ranking = {block: losses for block, losses in known.items() if block != lost}
    state = replace(first.state, scored={**first.state.scored, RANKING: ranking})
    whole, _ = unstopped(spec.metric)
    resumed, _ = prune_tiny(tiny_models_dir, spec, "tiny@resumed", again, state)
    assert resumed.removed_blocks == whole.removed_blocks
    assert again.evaluations[0] == (FREE + 2 - 1, FREE + NUM_REMOVE)
    assert again.evaluations[-1] == (FREE + NUM_REMOVE, FREE + NUM_REMOVE)


def test_a_ranking_ends_in_front_of_a_ratio_that_is_passed(
    tiny_models_dir: Path, spec: PruneSpec
) -> None:
    spec = replace(spec, metric=Metric.ONE_SHOT, num_remove=None, max_perplexity_ratio=1e6)
    recorder = Recorder()
    found, _ = prune_tiny(tiny_models_dir, spec, "tiny@far", recorder)
    assert len(found.removed_blocks) == FREE
    assert recorder.evaluations[-1] == (2 * FREE, 2 * FREE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measured_loss_that_is_no_number_ends_it(
    bad: float, tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SharedPrefixScorer.score

    def score(
        scorer: SharedPrefixScorer, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        is_second = len(keep) < NUM_BLOCKS
        for block, losses in whole(scorer, keep, candidates, windows):
            yield block, [bad for _ in losses] if is_second else losses

    monkeypatch.setattr(SharedPrefixScorer, "score", score)
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match="step 2"):
        prune_tiny(tiny_models_dir, replace(spec, metric=Metric.ONE_SHOT), "tiny@bad", recorder)
    assert len(recorder.removals) == 1


def test_a_race_has_no_place_in_a_ranking() -> None:
    for metric in ONCE:
        with pytest.raises(InvalidSpec, match="search=exact") as refused:
            PruneSpec("tiny", num_remove=1, metric=metric, search=Search.STAGED)
        assert refused.value.param == "search"


def test_the_state_of_a_ranking_is_that_of_no_round() -> None:
    state = SearchState.from_fields({"scored:0:3": "[0.5]", "scored:1:2": "[0.25]"})
    assert state.scored_in(RANKING) == {3: [0.5]}
    assert state.scored_in("1") == {2: [0.25]}
