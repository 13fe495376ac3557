"""Which measurement of a depth counts, where several were made."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.measured_speedups import (
    COMPARISON,
    FILE,
    ONE_STREAM,
    Measurand,
    MeasuredSpeedup,
    MeasuredSpeedups,
)
from pruning.records import InvalidRecord
from tests.support.api_fixtures import publish_pruned
from tests.support.tiny_directory import write_tiny_model


def measured(
    ratio: float, low: float | None, high: float | None, scenario: str = "served"
) -> MeasuredSpeedup:
    return MeasuredSpeedup(ratio, low, high, scenario, 1.0, 5)


KNOWN = measured(1.06, 1.03, 1.09)


@pytest.mark.parametrize(
    ("new", "is_kept"),
    [
        (measured(0.98, 0.0, 2.49), False),
        (measured(0.98, None, None), False),
        (measured(1.07, 1.03, 1.1), False),
        (measured(1.04, 1.02, 1.07), True),
        (measured(1.3, 1.2, 1.4), True),  # excludes what was known: something has changed
        (measured(1.06, 1.05, 1.07, COMPARISON), False),
    ],
    ids=["vague", "unknown", "wider", "narrower", "another", "a comparison"],
)
def test_what_is_known_better_stays(tmp_path: Path, new: MeasuredSpeedup, is_kept: bool) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    speedups.record("tiny", {Measurand(1): KNOWN})
    speedups.record("tiny", {Measurand(1): new, Measurand(2): new})
    assert speedups.of_model("tiny") == {Measurand(1): new if is_kept else KNOWN, Measurand(2): new}


def test_a_benchmark_replaces_a_comparison(tmp_path: Path) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    speedups.record("tiny", {Measurand(1): measured(1.06, 1.05, 1.07, COMPARISON)})
    speedups.record("tiny", {Measurand(1): KNOWN})
    assert speedups.of_model("tiny") == {Measurand(1): KNOWN}


def test_weights_and_loads_are_known_apart(tmp_path: Path) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    one, many, plain = (measured(ratio, ratio, ratio) for ratio in (1.8, 1.1, 1.06))
    int8 = Measurand(0, is_int8=True)
    stream = replace(int8, load=ONE_STREAM)
    speedups.record("tiny", {int8: many, Measurand(3): plain})
    assert speedups.of("tiny", 0, is_int8=True) == many
    speedups.record("tiny", {stream: one})
    again = MeasuredSpeedups(tmp_path)
    assert again.of("tiny", 0, is_int8=True) == one, "one stream before a load without a name"
    assert again.of_model("tiny")[int8] == many
    assert again.of("tiny", 3) == plain
    assert again.of("tiny", 3, is_int8=True) is None
    assert {str(what) for what in again.of_model("tiny")} == {"0+int8", "0+int8 stream", "3"}


def test_what_was_measured_of_a_replaced_model_is_forgotten(tiny_models_dir: Path) -> None:
    data_dir = tiny_models_dir.parent
    manifest, speedups = publish_pruned(data_dir), MeasuredSpeedups(data_dir)
    speedups.record("tiny", {Measurand(1): KNOWN, Measurand(3): KNOWN})
    assert MeasuredSpeedups(data_dir).of("tiny", 1) == KNOWN
    write_tiny_model(tiny_models_dir / "tiny", seed=7)
    assert speedups.of("tiny", 1) is None
    assert speedups.of_checkpoint(manifest) == KNOWN.interval, "it has weights of its own"
    speedups.record("tiny", {Measurand(2): KNOWN})
    assert speedups.of_model("tiny").keys() == {Measurand(2)}
    assert speedups.of_checkpoint(manifest) is None


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "models": {}}',
        '{"format": 2, "models": {"tiny": {"fingerprint": 3, "speedups": {}}}}',
        '{"format": 2, "models": {"tiny": {}}}',
    ],
)
def test_a_file_of_another_kind_has_no_measurements(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert MeasuredSpeedups(tmp_path).of("tiny", 1) is None


@pytest.mark.parametrize("key", ["", "x", "-1", "3 ", "3+int4"])
def test_a_key_that_names_nothing_is_refused(key: str) -> None:
    with pytest.raises(InvalidRecord, match="is no depth"):
        Measurand.parse(key)
