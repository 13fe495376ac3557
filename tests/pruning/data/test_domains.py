"""Windows by domain: for each use other text, and as much of it as there is."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.data.calibration import calibrate, evaluation_windows, repair_windows
from pruning.data.corpora import HUB_CORPORA, Corpus, HubCorpus, Split
from pruning.data.windows import Windows
from pruning.models.store import LoadedModel
from pruning.spec.calibration import Calibration, CalibrationMix, CalibrationSpec, Dataset, Sampling

Ids = set[tuple[int, ...]]


def ids(*windows: Windows) -> Ids:
    return {tuple(window) for part in windows for window in part.token_ids.tolist()}


def uses(spec: Calibration, loaded: LoadedModel) -> dict[str, Ids]:
    """The windows of each use, of all domains of the calibration together."""
    model, tokenizer = loaded.model, loaded.tokenizer
    repair = repair_windows(spec, model, tokenizer)
    evaluation = evaluation_windows(spec, model, tokenizer)
    domains = {part.domain for part in spec.parts}
    return {
        "calibration": ids(calibrate(spec, model, tokenizer)),
        "train": ids(*(repair.train[domain] for domain in domains)),
        "selection": ids(*(repair.selection[domain] for domain in domains)),
        "evaluation": ids(*(evaluation[domain] for domain in domains)),
    }


def halves(windows: Ids) -> Ids:
    """The first halves of windows, which repairs do not change."""
    return {window[: len(window) // 2] for window in windows}


def file_spec(path: Path, rows: Iterable[str], **settings: Any) -> CalibrationSpec:
    """A spec of a file with these rows: 3 windows of 8 tokens."""
    lines = [json.dumps({"text": row}) for row in rows] if path.suffix == ".jsonl" else rows
    path.write_text("\n".join(lines))
    defaults: dict[str, Any] = {"num_samples": 3, "seqlen": 8}
    return CalibrationSpec(Dataset.FILE, path=str(path), **{**defaults, **settings})


def numbered(word: str, count: int) -> list[str]:
    return [f"{number} of {number} {word}" for number in range(count)]


def texts(windows: Ids, loaded: LoadedModel) -> str:
    return "\n".join(loaded.tokenizer.batch_decode([list(window) for window in sorted(windows)]))


@pytest.mark.parametrize("name", ["text.txt", "records.jsonl"])
@pytest.mark.parametrize("sampling", Sampling)
def test_what_chooses_shares_no_window_with_what_fits_or_measures(
    tiny_loaded: LoadedModel, tmp_path: Path, name: str, sampling: Sampling
) -> None:
    spec = file_spec(tmp_path / name, numbered("dogs", 400), sampling=sampling)
    found = uses(spec, tiny_loaded)
    assert halves(found["calibration"]) <= halves(found["train"])
    for one, other in (
        ("train", "selection"),
        ("train", "evaluation"),
        ("selection", "evaluation"),
    ):
        assert found[one]
        assert not found[one] & found[other]


@pytest.mark.parametrize(("rows", "num_train"), [(4000, 96), (60, 51)])
def test_a_repair_takes_much_but_leaves_a_fifth_to_evaluations(
    tiny_loaded: LoadedModel, tmp_path: Path, rows: int, num_train: int
) -> None:
    spec = file_spec(tmp_path / "text.txt", numbered("dogs", rows))
    repair = repair_windows(spec, tiny_loaded.model, tiny_loaded.tokenizer)
    assert repair.train["text"].token_ids.shape == (num_train, 8)
    assert repair.selection["text"].token_ids.shape == (4, 8)


def test_records_of_a_jsonl_have_one_use_each(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    names = [f"n{number:03}" for number in range(60)]
    spec = file_spec(tmp_path / "records.jsonl", [f"{name} " * 120 for name in names])
    found = uses(spec, tiny_loaded)
    shown = {use: texts(windows, tiny_loaded) for use, windows in found.items()}
    seen = {use: {name for name in names if name in text} for use, text in shown.items()}
    assert all(seen.values())
    assert not seen["train"] & (seen["selection"] | seen["evaluation"])
    assert not seen["selection"] & seen["evaluation"]


def test_a_calibration_spreads_over_many_records(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    names = [f"n{number:03}" for number in range(60)]
    spec = file_spec(
        tmp_path / "records.jsonl", [f"{name} " * 120 for name in names], num_samples=20
    )
    windows = calibrate(spec, tiny_loaded.model, tiny_loaded.tokenizer)
    text = texts(ids(windows), tiny_loaded)
    assert sum(name in text for name in names) >= 15


def test_evaluation_records_are_the_same_for_every_seed(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = file_spec(tmp_path / "records.jsonl", numbered("dogs", 400))
    found = [uses(replace(spec, seed=seed), tiny_loaded) for seed in (0, 1)]
    assert found[0]["evaluation"] == found[1]["evaluation"]
    assert found[0]["calibration"] != found[1]["calibration"]


@pytest.mark.parametrize(("name", "count"), [("text.txt", 1), ("records.jsonl", 1)])
def test_text_that_is_just_enough_to_calibrate_gives_no_selection(
    tiny_loaded: LoadedModel, tmp_path: Path, name: str, count: int
) -> None:
    rows = ["the quick brown fox jumps over the lazy dog " * 4] * count
    spec = file_spec(tmp_path / name, rows, num_samples=1, seqlen=30)
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    assert len(calibrate(spec, model, tokenizer).token_ids) == 1
    repair = repair_windows(spec, model, tokenizer)
    assert set(repair.train) == {Path(name).stem}
    assert Path(name).stem not in repair.selection
    assert not ids(*repair.train.values()) & ids(*repair.selection.values())


def test_the_model_writes_other_text_for_every_use(tiny_loaded: LoadedModel) -> None:
    found = uses(CalibrationSpec(Dataset.SELF, num_samples=3, seqlen=8), tiny_loaded)
    assert halves(found["calibration"]) <= halves(found["train"])
    assert len(found["train"]) == 16
    assert not found["train"] & (found["selection"] | found["evaluation"])
    assert not found["selection"] & found["evaluation"]


@pytest.mark.parametrize(
    ("spec", "domain"),
    [
        (CalibrationSpec(Dataset.FILE, path="/texts/my.notes.txt"), "my.notes"),
        (CalibrationSpec(Dataset.WIKITEXT2), "wikitext2"),
        (CalibrationSpec(Dataset.C4), "c4"),
        (CalibrationSpec(Dataset.SELF), "self"),
    ],
)
def test_every_source_has_a_domain(spec: CalibrationSpec, domain: str) -> None:
    assert spec.domain == domain


def test_every_domain_has_the_windows_of_its_sources(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sources = (
        file_spec(tmp_path / "a" / "dogs.txt", numbered("dogs", 400), num_samples=9),
        file_spec(tmp_path / "b" / "dogs.txt", numbered("lazy", 400), num_samples=9),
        file_spec(tmp_path / "cats.txt", numbered("cats", 400), num_samples=9),
    )
    mix = CalibrationMix(sources, (1.0, 1.0, 1.0))
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    repair = repair_windows(mix, model, tokenizer)
    assert set(repair.train) == {"dogs", "cats"}
    assert set(repair.selection) == {"dogs", "cats", "prose", "code"}
    dogs = evaluation_windows(mix, model, tokenizer)["dogs"]
    assert len(dogs.token_ids) == 6
    shown = texts(ids(dogs), tiny_loaded)
    assert "dogs" in shown
    assert "lazy" in shown
    assert "cats" not in shown


def test_splits_of_the_hub_keep_the_uses_apart(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: HubCorpus, split: Split) -> Corpus:
        return Corpus(numbered(split.value, 200), "\n")

    monkeypatch.setattr(HubCorpus, "load", load)
    spec = CalibrationSpec(Dataset.WIKITEXT2, num_samples=3, seqlen=16)
    found = uses(spec, tiny_loaded)
    shown = {use: texts(windows, tiny_loaded) for use, windows in found.items()}
    splits: Mapping[str, Split] = {
        "calibration": Split.CALIBRATION,
        "train": Split.CALIBRATION,
        "selection": Split.SELECTION,
        "evaluation": Split.EVALUATION,
    }
    for use, own in splits.items():
        assert {split for split in Split if split.value in shown[use]} == {own}
    assert halves(found["calibration"]) <= halves(found["train"])


def test_no_row_of_a_hub_corpus_is_in_two_splits() -> None:
    for known in HUB_CORPORA.values():
        taken: list[tuple[str, int]] = []
        for part in known.parts.values():
            rows = range(part.start, part.start + (known.max_rows or 1))
            taken.extend((part.split, row) for row in rows)
        assert len(set(taken)) == len(taken)


def test_windows_of_a_draw_have_the_length_that_was_asked(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = file_spec(tmp_path / "records.jsonl", numbered("dogs", 400))
    windows = calibrate(spec, tiny_loaded.model, tiny_loaded.tokenizer)
    assert windows.token_ids.dtype == torch.int64
    assert windows.token_ids.shape == (3, 8)
