"""A repair on two actors against one in this process: equal to rounding, also after a loss."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import load
from pruning.models.streaming import ResidentModel
from pruning.repair.repair import RepairedDepth, repair_depths
from pruning.search.dense_model import Resources, load_dense_model
from pruning.search.ray_actors import ClusterLost
from pruning.search.ray_repair import ClusterWalk
from pruning.spec.prune import Resident
from tests.support.local_ray import LocalRay
from tests.support.repairs import windows_of
from tests.support.tiny_directory import write_tiny_model

KEEPS = [(0, 1, 3, 4), (0, 1, 3)]
Observe = Callable[[ClusterWalk, int], object]


def windows(number: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 260, (number, 9), generator=torch.Generator().manual_seed(seed))


TEXT = windows_of(
    {"prose": windows(9, 1), "code": windows(6, 2)}, {"prose": windows(3, 3), "code": windows(1, 4)}
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("repaired") / "tiny", num_blocks=5)


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[RepairedDepth]:
    model = ResidentModel(load(model_dir, device="cpu").model)
    return repair_depths(model, KEEPS, TEXT, batch_tokens=27)


def repaired(
    model_dir: Path,
    observe: Observe = lambda _walk, _done: None,
    **options: Any,
) -> list[RepairedDepth]:
    """On two actors. ``observe`` is given the walk and the number of steps that are done."""
    settings = {"num_actors": 2, "device": "cpu", "batch_tokens": 27, **options}
    opened: list[ClusterWalk] = []

    def open_walk(*arguments: Any) -> ClusterWalk:
        opened.append(ClusterWalk(*arguments, path=model_dir, **settings))
        return opened[0]

    return repair_depths(
        ResidentModel(load(model_dir, device="cpu").model),
        KEEPS,
        TEXT,
        batch_tokens=1,
        observe=lambda done, _total: observe(opened[0], done),
        open_walk=open_walk,
    )


def assert_equal(found: list[RepairedDepth], expected: list[RepairedDepth]) -> None:
    for depth, same in zip(found, expected, strict=True):
        for method, each in same.tried.items():
            assert depth.tried[method].tensors.keys() == each.tensors.keys()
            for name, values in each.tensors.items():
                assert torch.allclose(depth.tried[method].tensors[name], values, atol=1e-5)
            for domain, losses in each.losses.items():
                assert depth.tried[method].losses[domain] == pytest.approx(losses, abs=1e-5)


def losing(at: list[int], kill: Callable[[ClusterWalk], None]) -> Observe:
    """Lose an actor after each of these steps."""
    return lambda walk, done: kill(walk) if done in at else None


def kill_local(walk: ClusterWalk) -> None:
    walk._pool.ray.kill(walk._pool.actors[0].handle)


def kill_process(walk: ClusterWalk) -> None:
    handle = walk._pool.actors[0].handle
    pid = walk._pool.ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_repair_like_one(model_dir: Path, expected: list[RepairedDepth]) -> None:
    assert_equal(repaired(model_dir), expected)


@pytest.mark.slow
def test_the_replacement_of_a_killed_process_repeats_its_steps(
    model_dir: Path, expected: list[RepairedDepth]
) -> None:
    assert_equal(repaired(model_dir, losing([5], kill_process)), expected)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors in this process, which start immediately."""
    monkeypatch.setattr("pruning.search.ray_scoring.import_ray", LocalRay)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("num_actors", [1, 2, 7, 20])  # more than some or all domains have windows
def test_windows_are_spread_over_any_number_of_actors(
    num_actors: int, model_dir: Path, expected: list[RepairedDepth]
) -> None:
    assert_equal(repaired(model_dir, num_actors=num_actors), expected)


@pytest.mark.usefixtures("local")
def test_a_change_that_is_not_exact_is_tried_on_all_actors(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "olmo2", family="olmo2")
    model = ResidentModel(load(path, device="cpu").model)
    assert_equal(repaired(path), repair_depths(model, KEEPS, TEXT, batch_tokens=27))


@pytest.mark.usefixtures("local")
def test_the_replacement_of_a_lost_actor_repeats_its_steps(
    model_dir: Path, expected: list[RepairedDepth]
) -> None:
    every = list(range(1, 100))
    assert_equal(repaired(model_dir, losing(every, kill_local), max_restarts=1), expected)


@pytest.mark.usefixtures("local")
def test_without_a_replacement_the_repair_ends(model_dir: Path) -> None:
    with pytest.raises(ClusterLost, match="no actor is left"):
        repaired(model_dir, losing([3], kill_local), max_restarts=0)


@pytest.mark.usefixtures("local")
def test_a_budget_is_that_of_every_actor(model_dir: Path) -> None:
    with pytest.raises(StateBudgetTooSmall, match="the state budget of 1 bytes"):
        repaired(model_dir, state_budget=1)


@pytest.mark.usefixtures("local")
def test_a_run_with_actors_repairs_on_them(model_dir: Path, expected: list[RepairedDepth]) -> None:
    for num_actors, resident in ((2, Resident.MODEL), (0, Resident.MODEL), (0, Resident.STREAM)):
        resources = Resources(device="cpu", num_actors=num_actors, batch_tokens=27)
        dense = load_dense_model(model_dir, resident, resources)
        open_walk = dense.open_walk()
        assert (open_walk is not None) == (num_actors > 0)
        found = repair_depths(dense.visited(), KEEPS, TEXT, batch_tokens=27, open_walk=open_walk)
        assert_equal(found, expected)
