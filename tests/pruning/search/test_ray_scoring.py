"""Two actors on the CPU against one process: bit-identical losses, also after lost actors."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import load
from pruning.removal import Losses
from pruning.search.dense_model import Resources, load_dense_model
from pruning.search.ray_actors import ActorResult, ClusterLost
from pruning.search.ray_scoring import TIE_NATS, ClusterScorer, ClusterUnavailable, import_ray
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.search.staged import StagedScorer, stages
from pruning.sleb import Blocks, sleb
from pruning.spec.prune import Resident
from tests.support.local_ray import LocalRay
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

NUM_BLOCKS = 8
KEEP = tuple(range(NUM_BLOCKS))
CANDIDATES = KEEP[1:-1]
TWINS = (3, 4)  # equal weights: the model without either is the same
WINDOWS = torch.randint(3, 260, (24, 9), generator=torch.Generator().manual_seed(1))
BOUNDARIES = stages(len(WINDOWS))[:-1]
ALL = range(len(WINDOWS))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tiny_model(tmp_path_factory.mktemp("cluster") / "twins", num_blocks=NUM_BLOCKS)
    weights = load_file(path / "model.safetensors")
    first, second = (f"model.layers.{block}." for block in TWINS)
    twin = {name: weights[name.replace(second, first)].clone() for name in weights}
    save_file(twin, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def scorer(model_dir: Path) -> Iterator[ClusterScorer]:
    """Starts and stops its own Ray."""
    ray = importlib.import_module("ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ClusterScorer(
        model_dir, WINDOWS, num_actors=2, device="cpu", boundaries=BOUNDARIES
    ) as scorer:
        assert signal.getsignal(signal.SIGTERM) is on_sigterm
        yield scorer
    assert not ray.is_initialized()
    scorer.close()


@pytest.fixture
def shared(model_dir: Path) -> SharedPrefixScorer:
    return SharedPrefixScorer(load(model_dir).model, WINDOWS, boundaries=BOUNDARIES)


def kill(scorer: ClusterScorer, place: int) -> None:
    """Kill the process of the actor at ``place``."""
    (handle,) = (actor.handle for actor in scorer._pool.actors if actor.place == place)
    pid = scorer._pool.ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_search_is_that_of_one_process_to_the_bit(
    scorer: ClusterScorer, shared: SharedPrefixScorer, model_dir: Path
) -> None:
    found = list(sleb(scorer, NUM_BLOCKS, 5))
    assert found == list(sleb(shared, NUM_BLOCKS, 5))
    plain = list(sleb(PlainScorer(load(model_dir).model, WINDOWS), NUM_BLOCKS, 5))
    assert [removal.block for removal in found] == [removal.block for removal in plain]
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.scores == pytest.approx(dict(theirs.scores), abs=1e-5)


@pytest.mark.usefixtures("local")
def test_actors_that_stream_their_blocks_decide_what_one_process_does(
    model_dir: Path, shared: SharedPrefixScorer
) -> None:
    resources = Resources(device="cpu", num_actors=2)
    dense = load_dense_model(model_dir, Resident.STREAM, resources)
    with dense.scorer(WINDOWS, BOUNDARIES) as streamed:
        assert isinstance(streamed, ClusterScorer)
        found = list(sleb(streamed, NUM_BLOCKS, 3))
        handles = [actor.handle for actor in streamed._pool.actors]
        assert len(handles) == 2
    expected = list(sleb(shared, NUM_BLOCKS, 3))
    assert [removal.block for removal in found] == [removal.block for removal in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.scores == pytest.approx(dict(theirs.scores), abs=1e-5)
    assert dense.open_walk() is None
    assert all(parameter.is_meta for parameter in dense.model.parameters())


@pytest.mark.slow
def test_both_actors_have_their_part_and_keep_it(scorer: ClusterScorer) -> None:
    def places(keep: Blocks) -> dict[int, int]:
        assert len(dict(scorer.score_round(keep, keep[1:-1]))) == len(keep) - 2
        return {block: scorer._homes[block] for block in keep[1:-1]}

    first, second = places(KEEP), places((0, *KEEP[2:]))
    assert sorted(first.values()) == [0, 0, 0, 1, 1, 1]
    assert sum(first[block] != second[block] for block in second) <= 1  # moved to balance the load


@pytest.mark.slow
def test_races_run_on_actors_too(scorer: ClusterScorer, shared: SharedPrefixScorer) -> None:
    found = list(sleb(StagedScorer(scorer), NUM_BLOCKS, 3))
    assert found == list(sleb(StagedScorer(shared), NUM_BLOCKS, 3))


@settings(max_examples=10)
@given(st.data())
@pytest.mark.slow
def test_a_round_left_half_way_disturbs_none(
    scorer: ClusterScorer, model_dir: Path, data: st.DataObject
) -> None:
    shared = SharedPrefixScorer(load(model_dir).model, WINDOWS)
    keeps = st.sets(st.sampled_from(KEEP), min_size=2).map(lambda keep: tuple(sorted(keep)))
    for _ in range(data.draw(st.integers(1, 4))):
        keep = data.draw(keeps)
        candidates = tuple(data.draw(st.permutations(keep)))
        taken = data.draw(st.integers(0, len(candidates)))
        found = dict(islice(scorer.score_round(keep, candidates), taken))
        expected = dict(shared.score_round(keep, candidates))
        assert found == {block: expected[block] for block in found}
        assert len(found) == taken
        assert scorer.losses(keep) == shared.losses(keep)


@pytest.mark.slow
def test_ties_are_decided_in_one_place(
    scorer: ClusterScorer, shared: SharedPrefixScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the machines of the actors rounded differently."""
    run = scorer._pool.run

    def off(
        keep: Blocks, shares: dict[int, list[int]], windows: range, *known: dict[int, Losses]
    ) -> Iterator[ActorResult]:
        for answer in run(keep, shares, windows, *known):
            shift = TIE_NATS / 4 * answer.actor
            yield replace(answer, losses=[loss + shift for loss in answer.losses])

    monkeypatch.setattr(scorer._pool, "run", off)
    for keep in (KEEP, (0, *TWINS, 6, 7), (0, *TWINS, 7)):
        found = list(scorer.score_round(keep, keep[1:-1]))
        assert sorted(block for block, _ in found) == list(keep[1:-1])
        expected = dict(shared.score_round(keep, keep[1:-1]))
        for block, losses in found:
            assert losses == pytest.approx(expected[block], abs=TIE_NATS)
    assert dict(found)[TWINS[0]] == dict(found)[TWINS[1]]


@pytest.mark.slow
def test_what_an_evaluation_raises_comes_as_it_is(scorer: ClusterScorer) -> None:
    with pytest.raises(ValueError, match="do not begin and end at") as caught:
        list(scorer.score(KEEP, CANDIDATES, range(5)))
    assert type(caught.value) is ValueError
    assert len(dict(scorer.score_round(KEEP, CANDIDATES))) == len(CANDIDATES)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    """Actors in this process, which start immediately."""
    ray = LocalRay()
    monkeypatch.setattr("pruning.search.ray_scoring.import_ray", lambda: ray)
    return ray


def kill_local(scorer: ClusterScorer, place: int) -> None:
    (handle,) = (actor.handle for actor in scorer._pool.actors if actor.place == place)
    scorer._pool.ray.kill(handle)


def check_filled_again(
    scorer: ClusterScorer,
    shared: SharedPrefixScorer,
    kill_actor: Callable[[ClusterScorer, int], None],
) -> None:
    expected = dict(shared.score_round(KEEP, CANDIDATES))
    before = {actor.number for actor in scorer._pool.actors}
    answers = scorer.score_round(KEEP, CANDIDATES)
    found = dict([next(answers)])
    kill_actor(scorer, 0)
    found.update(answers)
    assert found == expected

    def is_filled_again() -> bool:
        """Whether there is another actor in its place. A loss shows when there is work for it."""
        assert dict(scorer.score_round(KEEP, CANDIDATES)) == expected
        numbers = {actor.number for actor in scorer._pool.actors}
        return len(scorer._pool.ready_places()) == 2 and len(before & numbers) == 1

    wait_until(is_filled_again, "the place is filled again")


def check_lost(model_dir: Path, kill_actor: Callable[[ClusterScorer, int], None]) -> None:
    with ClusterScorer(model_dir, WINDOWS, num_actors=1, device="cpu", max_restarts=0) as frail:
        answers = frail.score_round(KEEP, CANDIDATES)
        next(answers)
        kill_actor(frail, 0)
        with pytest.raises(ClusterLost, match=r"no actor is left .*then resume the search"):
            list(answers)
        with pytest.raises(ClusterLost):
            frail.losses(KEEP)


@pytest.mark.usefixtures("local")
def test_a_lost_local_actors_candidates_are_done_by_the_other(
    model_dir: Path, shared: SharedPrefixScorer
) -> None:
    with ClusterScorer(
        model_dir, WINDOWS, num_actors=2, device="cpu", boundaries=BOUNDARIES
    ) as scorer:
        check_filled_again(scorer, shared, kill_local)


@pytest.mark.slow
def test_a_lost_actors_candidates_are_done_by_the_other_and_its_place_is_filled_again(
    scorer: ClusterScorer, shared: SharedPrefixScorer
) -> None:
    check_filled_again(scorer, shared, kill)


@pytest.fixture
def parts_of(model_dir: Path, local: LocalRay) -> Iterator[ClusterScorer]:
    """Actors with memory for four windows at a time."""
    assert local
    room = 4 * WINDOWS.shape[1] * 32 * 4 * (NUM_BLOCKS + 1)
    with ClusterScorer(model_dir, WINDOWS, num_actors=2, device="cpu", state_budget=room) as scorer:
        yield scorer


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The candidates that are scored from now on, once for each batch."""
    score, found = SharedPrefixScorer._swept, list[int]()

    def noted(scorer: SharedPrefixScorer, group: Any, keep: Blocks, without: Blocks) -> Any:
        found.extend(without)
        return score(scorer, group, keep, without)

    monkeypatch.setattr(SharedPrefixScorer, "_swept", noted)
    return found


@pytest.mark.parametrize("is_lost", [False, True], ids=["stopped", "lost"])
def test_candidates_are_told_while_they_are_scored_and_are_not_scored_again(
    parts_of: ClusterScorer, shared: SharedPrefixScorer, scored: list[int], is_lost: bool
) -> None:
    """Behind a stop of the search, or the loss of an actor."""
    expected = dict(shared.score_round(KEEP, CANDIDATES))
    scored.clear()
    growing = parts_of.growing(KEEP, CANDIDATES, ALL, {})
    found = dict(islice(growing, 10))
    assert all(0 < len(losses) < len(ALL) for losses in found.values())
    if is_lost:
        kill_local(parts_of, 0)
    else:
        growing = parts_of.growing(KEEP, CANDIDATES, ALL, found)
    for block, losses in growing:
        assert len(losses) > len(found.get(block, ())) or len(losses) == len(ALL)
        found[block] = losses
    for block, losses in expected.items():
        assert found[block] == pytest.approx(losses, abs=1e-6)
    num_parts = len(ALL) // 4
    whole, again = len(CANDIDATES) * num_parts, len(TWINS) * num_parts  # in one place
    assert whole <= len(scored) <= whole + again + 2 * 2  # each actor had an answer not read


@pytest.mark.usefixtures("local")
def test_with_every_local_actor_lost_the_search_says_so(model_dir: Path) -> None:
    check_lost(model_dir, kill_local)


@pytest.mark.slow
def test_with_every_actor_lost_the_search_says_so(scorer: ClusterScorer, model_dir: Path) -> None:
    check_lost(model_dir, kill)
    assert len(scorer.losses(KEEP)) == len(WINDOWS)  # not affected by the end of another scorer


@pytest.mark.usefixtures("local")
def test_what_loading_in_a_local_actor_raises_comes_as_it_is(model_dir: Path) -> None:
    with pytest.raises(StateBudgetTooSmall, match="the state budget of 1 bytes"):
        ClusterScorer(model_dir, WINDOWS, num_actors=1, device="cpu", state_budget=1)


@pytest.mark.slow
def test_what_loading_raises_comes_as_it_is(scorer: ClusterScorer, model_dir: Path) -> None:
    with pytest.raises(StateBudgetTooSmall, match="the state budget of 1 bytes"):
        ClusterScorer(model_dir, WINDOWS, num_actors=1, device="cpu", state_budget=1)
    assert scorer._pool.ray.is_initialized()


@pytest.mark.slow
def test_more_actors_than_gpus_are_refused(scorer: ClusterScorer, model_dir: Path) -> None:
    num_gpus = int(scorer._pool.ray.cluster_resources().get("GPU", 0))
    with pytest.raises(ClusterUnavailable, match=f"the Ray cluster has only {num_gpus} GPUs"):
        ClusterScorer(model_dir, WINDOWS, num_actors=num_gpus + 1, device="cuda")


@pytest.mark.parametrize(("num_actors", "device"), [(0, "cpu"), (1, "cuda:1")])
def test_nonsense_is_refused(num_actors: int, device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one actor"):
        ClusterScorer(tmp_path, WINDOWS, num_actors=num_actors, device=device)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterUnavailable, match=r"pip install 'sleb-serve\[cluster\]'"):
        ClusterScorer(tmp_path, WINDOWS, num_actors=1)


def test_a_ray_that_does_not_start_is_a_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class SlowRay(LocalRay):
        def is_initialized(self) -> bool:
            return False

        def init(self, **_settings: object) -> None:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("pruning.search.ray_scoring.import_ray", SlowRay)
    caplog.set_level("INFO")
    with pytest.raises(ClusterUnavailable, match=r"timed out during startup.*RAY_ADDRESS"):
        ClusterScorer(tmp_path, WINDOWS, num_actors=1)
    assert "starting Ray on this machine" in caplog.text  # before the seconds that it takes


def test_nor_is_ray_enough_where_a_part_of_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    assert import_ray().__name__ == "ray"
    with pytest.raises(ClusterUnavailable, match=r"pip install 'sleb-serve\[cluster\]'"):
        import_ray("serve")
