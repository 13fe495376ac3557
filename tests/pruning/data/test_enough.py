"""A job without enough text is refused before it is recorded, for the reason of a worker."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.data.calibration import calibrate
from pruning.data.corpora import HUB_CORPORA, CalibrationError
from pruning.data.enough import check_text
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset, Sampling
from tests.support.tiny import tiny_model
from tests.support.tiny_directory import tiny_tokenizer

LINES = [f"{number} lazy dogs, {7 * number} foxes" for number in range(40)]
FILES: dict[str, Callable[[Path], object]] = {
    "text.txt": lambda path: path.write_text("\n".join(LINES)),
    "text.jsonl": lambda path: path.write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in LINES)
    ),
    "empty.txt": lambda path: path.write_text(" \n\n"),
    "latin.txt": lambda path: path.write_bytes(b"caf\xe9 " * 9),
    "broken.jsonl": lambda path: path.write_text('{"text": "a"}\n{"text": 3}\n'),
}


def code_of(check: Callable[[], object]) -> str | None:
    try:
        check()
    except CalibrationError as error:
        return error.code
    return None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sampling", Sampling)
@pytest.mark.parametrize("num_samples", [1, 8, 4000])
def test_a_file_is_judged_as_by_a_worker(
    tmp_path: Path, name: str, sampling: Sampling, num_samples: int
) -> None:
    FILES[name](tmp_path / name)
    path = str(tmp_path / name)
    spec = CalibrationSpec(Dataset.FILE, sampling, num_samples, seqlen=8, path=path)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    expected = code_of(lambda: calibrate(spec, model, tokenizer))
    assert code_of(lambda: check_text(spec, tokenizer)) == expected
    if name == "text.txt" and sampling is Sampling.WINDOWS:
        assert expected == (None if num_samples < 4000 else "not_enough_text")


def test_a_file_is_read_only_as_far_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"lazy dogs\n" * 10**6 + b"\xff")
    check_text(CalibrationSpec(Dataset.FILE, seqlen=8, path=str(path)), tiny_tokenizer())


def test_every_source_of_a_mix_is_judged(tmp_path: Path) -> None:
    FILES["text.txt"](file := tmp_path / "text.txt")
    packaged = CalibrationSpec(Dataset.PROSE, num_samples=400, seqlen=8)
    short = CalibrationSpec(Dataset.FILE, num_samples=400, seqlen=8, path=str(file))
    check_text(packaged, tiny_tokenizer())
    with pytest.raises(CalibrationError, match="200 are needed"):
        check_text(CalibrationMix((packaged, short), (1, 1)), tiny_tokenizer())


@pytest.mark.slow
def test_packaged_text_has_an_end() -> None:
    spec = CalibrationSpec(Dataset.CODE, num_samples=2000, seqlen=2048)
    with pytest.raises(CalibrationError, match="add text, or reduce the number of samples"):
        check_text(spec, tiny_tokenizer())


@pytest.mark.parametrize("dataset", [Dataset.SELF, Dataset.C4])
def test_text_that_only_a_worker_has_is_left_to_it(dataset: Dataset) -> None:
    check_text(CalibrationSpec(dataset, num_samples=10**3), tiny_tokenizer())


@pytest.mark.parametrize("dataset", HUB_CORPORA)
def test_text_of_the_hub_has_an_end(dataset: Dataset) -> None:
    """Told without a download, for what no tokenizer makes of it."""
    windows = CalibrationSpec(dataset, Sampling.WINDOWS, num_samples=100_000, seqlen=2_048)
    with pytest.raises(CalibrationError, match="reduce the number of samples") as caught:
        check_text(windows, tiny_tokenizer())
    assert caught.value.code == "not_enough_text"
    check_text(replace(windows, sampling=Sampling.ROWS), tiny_tokenizer())  # takes what there is
    check_text(replace(windows, num_samples=1_000), tiny_tokenizer())
