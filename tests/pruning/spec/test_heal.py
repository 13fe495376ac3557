"""The settings of a healing: numbers in their ranges, and a record that can be read again."""

import json
import math

import pytest

from pruning.spec import InvalidSpec
from pruning.spec.heal import Heal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_tokens", 0),
        ("max_minutes", 0.0),
        ("max_minutes", math.inf),
        ("rank", 0),
        ("rank", 5000),
        ("alpha", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("batch_tokens", 0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("clip_norm", 0.0),
        ("hidden_weight", -1.0),
        ("hidden_weight", math.inf),
        ("steps_per_check", 0),
        ("patience", 0),
        ("seed", -1),
    ],
)
def test_a_number_out_of_its_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidSpec, match="expected") as caught:
        Heal(**{name: value})  # type: ignore[arg-type]  # any of them
    assert caught.value.param == f"heal.{name}"


def test_it_survives_json() -> None:
    heal = Heal(rank=3, max_minutes=2.5, control=False)
    assert Heal.from_dict(json.loads(json.dumps(heal.to_dict()))) == heal


@pytest.mark.parametrize(
    ("width", "rate"), [(64, 2e-3), (576, 2e-3), (4096, 4.3e-4), (8192, 2.5e-4)]
)
def test_wider_models_learn_at_a_lower_rate_unless_told(width: int, rate: float) -> None:
    assert Heal().rate(width) == pytest.approx(rate, rel=0.02)
    assert Heal(learning_rate=0.5).rate(width) == 0.5
