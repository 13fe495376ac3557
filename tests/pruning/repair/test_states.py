"""Hidden states in memory and in a file: what is put in comes out, and the budget holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.repair.states import SpillFailed, States
from tests.support.full_disk import full_disk

DTYPES = (torch.float32, torch.bfloat16)
actions = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.sampled_from(DTYPES)))


@given(budget=st.integers(0, 200), actions=actions)
def test_what_is_put_in_comes_out_and_the_budget_holds(
    budget: int, actions: list[tuple[int, int, torch.dtype]]
) -> None:
    states, expected = States[int](budget), dict[int, torch.Tensor]()
    for key, rows, dtype in actions:
        if key in expected:
            states.drop(key)
            del expected[key]
        else:
            expected[key] = torch.randn(rows, 8).to(dtype)
            states.put(key, expected[key].clone())
        assert all((key in states) == (key in expected) for key in range(6))
        assert states.held_bytes <= states.peak_bytes <= budget
        for other, tensor in expected.items():
            found = states.get(other)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
    states.close()
    assert states.held_bytes == 0


def test_room_in_the_file_is_used_again() -> None:
    states = States[int](0)
    for turn in range(10):
        states.put(turn, torch.full((4, 4), float(turn)))
        states.put(-turn - 1, torch.zeros(2))
        assert states.get(turn)[0, 0] == turn
        states.drop(turn)
        states.drop(-turn - 1)
    assert states.file_bytes == 4 * 4 * 4 + 2 * 4
    states.close()


def test_a_part_of_a_larger_tensor_is_written_alone() -> None:
    states = States[int](0)
    whole = torch.arange(12.0).view(3, 4)
    states.put(0, whole[:, 1:3])
    assert torch.equal(states.get(0), whole[:, 1:3])
    with pytest.raises(KeyError):
        states.get(1)
    states.close()


def fill(states: States[int]) -> None:
    for key in range(3):
        states.put(key, torch.zeros(32))


@pytest.mark.parametrize("limit_bytes", [0, 64, 300])
def test_a_full_disk_is_said_at_once(limit_bytes: int) -> None:
    states = States[int](0)
    with (
        full_disk(limit_bytes),
        pytest.raises(SpillFailed, match="set TMPDIR to a larger disk"),
    ):
        fill(states)
    states.close()
