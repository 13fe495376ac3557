"""Calibration texts as they are written on a command line."""

from collections.abc import Sequence

import pytest

from app.cli.options import calibration_of
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset, Sampling


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
