"""The options for calibration texts, and the agreement of all options with the spec."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pytest

from app.cli.options import calibration_of
from app.cli.prune import prune
from app.cli.stability import stability
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset, Sampling
from pruning.spec.gate import Gate
from pruning.spec.prune import PruneSpec


def parsed(*texts: str) -> CalibrationSpec | CalibrationMix:
    return calibration_of(texts, Sampling.ROWS, 9, 32, 5)


@pytest.mark.parametrize(
    ("text", "dataset", "path"),
    [
        ("self", Dataset.SELF, None),
        ("c4", Dataset.C4, None),
        ("a.txt", Dataset.FILE, "a.txt"),
        ("file", Dataset.FILE, "file"),
        ("a.txt=2", Dataset.FILE, "a.txt"),
        ("a=b.txt", Dataset.FILE, "a=b.txt"),
        ("a=1=1", Dataset.FILE, "a=1"),
        ("=2", Dataset.FILE, "=2"),
    ],
)
def test_one_text_is_no_mix_whatever_its_weight(
    text: str, dataset: Dataset, path: str | None
) -> None:
    assert parsed(text) == CalibrationSpec(dataset, Sampling.ROWS, 9, 32, 5, path)


def test_several_are_mixed_by_weight_which_is_one_where_none_is_given() -> None:
    mix = parsed("a.txt", "self=2.5")
    assert isinstance(mix, CalibrationMix)
    assert mix.weights == (1.0, 2.5)
    assert mix.sources == (parsed("a.txt"), parsed("self"))


@pytest.mark.parametrize(
    "texts", [["a.txt=0"], ["a.txt=-1"], ["a.txt", "self=nan"], ["a=inf"], ["self", "self"]]
)
def test_what_cannot_be_mixed_is_refused(texts: Sequence[str]) -> None:
    with pytest.raises(InvalidSpec):
        parsed(*texts)


def spec_options() -> dict[str, Any]:
    """The default of every field of the spec, by the name of its option."""
    specs = {field.name: field.default for field in fields(PruneSpec)}
    sources = {field.name: field.default for field in fields(CalibrationSpec)}
    gates = {f"gate_{field.name}": field.default for field in fields(Gate)}
    del specs["calibration"], specs["gate"]  # one option for each of their fields
    del sources["path"]  # --calibration takes the path or the name of the data set
    dataset = sources.pop("dataset")
    return {**specs, **sources, **gates, "calibration": [dataset]}


def options_of(command: Callable[..., None]) -> dict[str, Any]:
    return {name: param.default for name, param in inspect.signature(command).parameters.items()}


def test_prune_has_an_option_with_its_default_for_every_field_of_the_spec() -> None:
    options, own = options_of(prune), {"model", "out", "state_budget", "actors", "as_json"}
    expected = spec_options()
    assert options.keys() - own == expected.keys() - {"model"}
    assert {name: options[name] for name in options.keys() - own} == {
        name: default for name, default in expected.items() if name != "model"
    }


def test_stability_has_the_options_and_defaults_of_the_fields_that_it_leaves_open() -> None:
    own = {"model", "out", "num_remove", "seeds", "as_json"}
    options, expected = options_of(stability), spec_options()
    shared = options.keys() - own
    assert {name: options[name] for name in shared} == {name: expected[name] for name in shared}
