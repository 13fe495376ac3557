"""A training lowers the divergence, is resumed exactly, and keeps its best step."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.healing.divergence import hidden_error
from pruning.healing.record import Step
from pruning.healing.state import read_state, save_state
from pruning.healing.students import alone, of_order
from pruning.healing.train import LEAST_RATE, HealingDiverged, Training, schedule
from pruning.models.blocks import NO_OWN
from pruning.models.loss import last_hidden
from pruning.spec.heal import Depths, Heal
from tests.support.quick import slow_but
from tests.support.repairs import random_text, token_ids_of
from tests.support.tiny import tiny_model

KEEP = (0, 2, 5)
NUM_STEPS = 24
HEAL = Heal(
    num_tokens=NUM_STEPS * 96, rank=8, learning_rate=5e-3, batch_tokens=96, steps_per_check=6
)


def training(heal: Heal = HEAL, keep: Sequence[int] = KEEP, **more: object) -> Training:
    model = tiny_model("llama")
    students = alone(model, tuple(keep), NO_OWN, heal)
    return Training(model, students, random_text(), heal, digest="d", **more)  # type: ignore[arg-type]  # named


@pytest.fixture(scope="module")
def whole() -> tuple[Training, Sequence[Step]]:
    """A training that nothing disturbed. Only for reading."""
    run = training()
    return run, list(run.steps())


def losses(steps: Sequence[Step]) -> list[float]:
    return [step.loss for step in steps]


def test_the_divergence_on_held_out_text_falls(whole: tuple[Training, Sequence[Step]]) -> None:
    run, steps = whole
    first, best = run.progress.checks[0], run.progress.best
    assert best.loss < 0.9 * first.loss
    assert set(best.by_domain) == {"prose", "code"}
    assert best.loss == pytest.approx(sum(best.by_domain.values()) / 2)
    assert [step.number for step in steps] == list(range(1, NUM_STEPS + 1))
    assert steps[-1].num_tokens == HEAL.num_tokens == run.progress.num_tokens
    assert steps[-1].ratio == 1
    checks = [step.check for step in steps if step.check]
    assert [check.step for check in checks] == [6, 12, 18, 24]


def test_one_adapter_brings_every_depth_nearer() -> None:
    model, heal = tiny_model("llama"), replace(HEAL, depths=Depths.ALL)
    run = Training(model, of_order(model, (1, 3, 4), {}, heal), random_text(), heal)
    list(run.steps())
    first, best = run.progress.checks[0], run.progress.best
    assert len(first.by_depth) == 3
    for before, after in zip(first.by_depth, best.by_depth, strict=True):
        assert after < 0.95 * before
    assert best.loss == pytest.approx(sum(best.by_depth) / 3)


def test_the_hidden_states_can_be_a_part_of_the_loss(
    whole: tuple[Training, Sequence[Step]],
) -> None:
    both = next(training(replace(HEAL, hidden_weight=2.0)).steps())
    assert both.loss > whole[1][0].loss


@pytest.mark.slow
def test_a_weight_on_hidden_states_brings_them_nearer(
    whole: tuple[Training, Sequence[Step]],
) -> None:
    weighted = training(replace(HEAL, hidden_weight=20.0))
    list(weighted.steps())
    errors = []
    for run in (whole[0], weighted):
        windows = torch.cat(list(token_ids_of(random_text().selection).values()))
        with torch.no_grad():
            states = [last_hidden(model, windows) for model in (run._adapter.model, run._dense)]
        errors.append(float(hidden_error(*(state.flatten(0, 1) for state in states))))
    assert errors[1] < 0.95 * errors[0]


def test_the_best_adapter_gives_the_best_loss_again(
    whole: tuple[Training, Sequence[Step]],
) -> None:
    again = training()
    again._adapter.load(whole[0].best)
    next(again.steps())  # measures before its first step
    best = whole[0].progress.best
    assert again.progress.checks[0].loss == pytest.approx(best.loss, rel=1e-4)


@pytest.mark.parametrize("number", slow_but((1, 6, 15), 6))
def test_a_resumed_training_makes_the_same_steps(
    number: int, whole: tuple[Training, Sequence[Step]], tmp_path: Path
) -> None:
    first = training()
    begun = list(itertools.islice(first.steps(), number))
    save_state(tmp_path / "state.safetensors", first.state())
    earlier = read_state(tmp_path / "state.safetensors", "d")
    assert earlier is not None
    rest = training(earlier=earlier)
    found = losses(begun) + losses(list(rest.steps()))
    assert found == pytest.approx(losses(whole[1]), rel=1e-5)
    assert rest.progress.losses == pytest.approx(losses(whole[1]), rel=1e-5)
    assert rest.progress.best.loss == pytest.approx(whole[0].progress.best.loss, rel=1e-5)


def test_parts_of_a_step_add_up(whole: tuple[Training, Sequence[Step]]) -> None:
    in_parts = list(itertools.islice(training(micro_tokens=12).steps(), 4))
    assert losses(in_parts) == pytest.approx(losses(whole[1][:4]), rel=1e-4)


def test_it_ends_when_the_loss_on_held_out_text_rises() -> None:
    heal = replace(HEAL, learning_rate=0.5, warmup=0.0, steps_per_check=1, patience=3)
    run = training(heal)
    steps = list(run.steps())
    assert len(steps) < NUM_STEPS
    assert run.progress.num_risen == 3
    assert run.progress.best is run.progress.checks[-4]


def test_it_ends_with_its_minutes() -> None:
    run = training(replace(HEAL, max_minutes=1e-6))
    assert len(list(run.steps())) <= 1


def test_a_loss_that_is_not_finite_ends_it() -> None:
    run = training()
    with torch.no_grad():
        for parameter in run._adapter.parameters.values():
            parameter.fill_(float("nan"))
    with pytest.raises(HealingDiverged, match="held-out loss is nan"):
        list(run.steps())


def test_the_dense_model_stays_where_it_is() -> None:
    """The control: there is nothing to learn from oneself."""
    run = training(replace(HEAL, num_tokens=8 * 96, learning_rate=2e-4), range(6))
    assert list(run.steps()) == []
    assert run.progress.checks[-1].loss == 0
    norm = run._step()
    assert norm.loss == 0
    assert all(not each.any() for name, each in run.best.items() if "lora_B" in name)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(used / 100, 0.1) for used in range(101)]
    assert rates[10] == 1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(LEAST_RATE)
    assert schedule(0, 0.0) == 1
