"""Processes that train together make the steps of one process. Here they are threads over gloo."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
import torch
from torch import distributed

from pruning.healing import students
from pruning.healing.peers import ALONE, PeerLost, Peers
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN
from pruning.spec.heal import Depths, Heal
from tests.support.repairs import random_text
from tests.support.tiny import tiny_model

KEEP = (0, 2, 5)
HEAL = Heal(num_tokens=12 * 96, rank=8, learning_rate=5e-3, batch_tokens=96, steps_per_check=4)


def training(heal: Heal, peers: Peers) -> Training:
    model, text = tiny_model("llama"), random_text()
    if heal.depths is Depths.ALL:
        found = students.of_order(model, (3, 1, 4), {}, heal)
    else:
        found = students.alone(model, KEEP, NO_OWN, heal)
    return Training(model, found, text, heal, peers=peers)


def together(number: int, run: Callable[[Peers], object]) -> list[Any]:
    """What ``run`` returns, or the error it raises, in each of so many threads."""
    store = distributed.HashStore()  # type: ignore[attr-defined]  # exported without saying so
    found: list[Any] = [None] * number

    def run_one(rank: int) -> None:
        try:
            group = distributed.ProcessGroupGloo(store, rank, number, timedelta(seconds=30))
            found[rank] = run(Peers(rank, number, group))
        except PeerLost as error:
            found[rank] = error

    threads = [threading.Thread(target=run_one, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(
    ("change", "num_windows"),
    [
        pytest.param({}, 8, marks=pytest.mark.slow),
        pytest.param({"batch_tokens": 1}, 2, marks=pytest.mark.slow),
        ({"depths": Depths.ALL}, 8),
    ],
    ids=["shared", "a window for each", "all depths"],
)
def test_two_make_the_steps_of_one(change: dict[str, Any], num_windows: int) -> None:
    heal = replace(HEAL, num_tokens=12 * num_windows * 12, **change)
    same = replace(heal, batch_tokens=num_windows * 12)
    alone = training(same, ALONE)
    expected = [step.loss for step in islice(alone.steps(), 12)]
    prepared = [training(heal, Peers(rank, 2)) for rank in range(2)]  # seeds are of the process

    def run(peers: Peers) -> Training:
        one = prepared[peers.rank]
        one._peers = peers
        list(islice(one.steps(), 12))
        return one

    runs: Sequence[Training] = together(2, run)
    for one in runs:
        assert one.progress.losses == pytest.approx(expected, rel=1e-4)
        held_out = [check.loss for check in one.progress.checks]
        assert held_out == pytest.approx([c.loss for c in alone.progress.checks], rel=1e-4)
    first, second = runs
    assert first.progress == second.progress  # its times as well, which may end the training
    for name, parameter in first._adapter.parameters.items():
        assert torch.equal(parameter, second._adapter.parameters[name])


def test_more_processes_go_on_where_one_has_stopped() -> None:
    heal = replace(HEAL, batch_tokens=12)
    alone = training(heal, ALONE)
    list(islice(alone.steps(), 5))
    state = alone.state()
    model = tiny_model("llama")
    student = students.alone(model, KEEP, NO_OWN, heal)
    more = Training(model, student, random_text(), heal, earlier=state, peers=Peers(0, 3))
    assert more._used == alone._used
    windows = [*islice(more._parts(more._order.windows(5, 3)), 1)]
    [step] = islice(more.steps(), 1)
    assert torch.equal(windows[0], alone._order.windows(5, 1))
    assert (step.number, step.num_tokens) == (6, 8 * 12)


def test_values_of_the_first_are_taken() -> None:
    def run(peers: Peers) -> list[float]:
        tensors = [torch.full((2,), float(peers.rank + 5)), torch.full((1, 1), peers.rank + 7.0)]
        peers.take_first(tensors)
        return [*tensors[0].tolist(), float(tensors[1]), peers.as_first(peers.rank + 9)]

    assert together(3, run) == [[5, 5, 7, 9]] * 3


def test_rows_are_shared_and_none_is_left() -> None:
    rows = torch.arange(7)
    shares = [Peers(rank, 3).share(rows).tolist() for rank in range(3)]
    assert sorted(row for share in shares for row in share) == rows.tolist()
    assert [len(Peers(rank, 3).share(rows[:2])) for rank in range(3)] == [1, 1, 0]


def test_one_that_is_gone_ends_the_others() -> None:
    def run(peers: Peers) -> None:
        peers.as_first(1)
        if peers.is_first:
            peers.as_first(2)

    first, _ = together(2, run)
    assert isinstance(first, PeerLost)
    assert "start all processes again" in str(first)
