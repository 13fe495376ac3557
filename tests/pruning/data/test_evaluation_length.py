"""How long held-out windows are: 512 tokens, unless that is not possible."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pruning.data.calibration import evaluation_windows
from pruning.data.corpora import CalibrationError
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.models.store import LoadedModel
from pruning.spec.calibration import (
    Calibration,
    CalibrationMix,
    CalibrationSpec,
    Dataset,
    default_calibration,
)
from pruning.spec.evaluation import FIRST_WINDOWS, USUAL_TOKENS, Evaluation

SEQLEN = 16  # of the calibration
PACKAGED = default_calibration(num_samples=4, seqlen=SEQLEN)


@pytest.fixture
def long_context(tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Only its tokenizer and its context length are asked here."""
    monkeypatch.setattr(tiny_loaded.model.config, "max_position_embeddings", USUAL_TOKENS)
    return tiny_loaded


def lengths(spec: Calibration, loaded: LoadedModel, evaluation: Evaluation) -> set[int]:
    windows = evaluation_windows(spec, loaded.model, loaded.tokenizer, evaluation=evaluation)
    return {each.token_ids.shape[1] for each in windows.values()}


def with_file(path: Path) -> Calibration:
    """Packaged prose mixed with this file."""
    size: dict[str, Any] = {"num_samples": 2, "seqlen": SEQLEN}
    file = CalibrationSpec(Dataset.FILE, path=str(path), **size)
    return CalibrationMix((CalibrationSpec(Dataset.PROSE, **size), file), (1.0, 1.0))


def test_windows_have_the_usual_length(long_context: LoadedModel) -> None:
    assert lengths(PACKAGED, long_context, Evaluation()) == {USUAL_TOKENS}


def test_the_context_of_the_model_is_not_exceeded(
    long_context: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_context.model.config, "max_position_embeddings", USUAL_TOKENS - 1)
    assert lengths(PACKAGED, long_context, Evaluation()) == {SEQLEN}


def test_a_length_that_is_asked_for_is_kept(long_context: LoadedModel) -> None:
    assert lengths(PACKAGED, long_context, Evaluation(seqlen=32)) == {32}


def test_windows_are_no_shorter_than_those_of_the_calibration(
    long_context: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_context.model.config, "max_position_embeddings", 2 * USUAL_TOKENS)
    longer = default_calibration(num_samples=2, seqlen=USUAL_TOKENS + 8)
    assert lengths(longer, long_context, Evaluation()) == {USUAL_TOKENS + 8}


def test_a_short_text_keeps_all_windows_short(long_context: LoadedModel, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{number} words of a record. " * 20}) for number in range(40)]
    (short := tmp_path / "short.jsonl").write_text("\n".join(rows))
    assert lengths(with_file(short), long_context, Evaluation()) == {SEQLEN}


def test_a_text_of_one_file_keeps_all_windows_short(
    long_context: LoadedModel, tmp_path: Path
) -> None:
    (plain := tmp_path / "plain.txt").write_text("All of one text. " * 10_000)
    assert lengths(with_file(plain), long_context, Evaluation()) == {SEQLEN}


def test_more_windows_than_a_text_has_at_the_usual_length_are_short(
    long_context: LoadedModel,
) -> None:
    def most(evaluation: Evaluation) -> int:
        model, tokenizer = long_context.model, long_context.tokenizer
        windows = evaluation_windows(PACKAGED, model, tokenizer, evaluation=evaluation)
        return min(len(each.token_ids) for each in windows.values())

    at_usual = most(Evaluation(num_samples=10_000, seqlen=USUAL_TOKENS))
    assert at_usual > FIRST_WINDOWS
    assert lengths(PACKAGED, long_context, Evaluation(num_samples=at_usual)) == {USUAL_TOKENS}
    assert lengths(PACKAGED, long_context, Evaluation(num_samples=at_usual + 1)) == {SEQLEN}


def test_a_length_beyond_the_context_is_refused(long_context: LoadedModel) -> None:
    with pytest.raises(CalibrationError, match=r"evaluation\.seqlen=513"):
        lengths(PACKAGED, long_context, Evaluation(seqlen=USUAL_TOKENS + 1))


def test_what_was_measured_before_is_measured_at_the_same_length() -> None:
    dense = Measured(1.0, 0.1)
    domain = DomainQuality("prose", "packaged prose", 24, 128, "digest", dense, raw=(dense,))
    quality = Quality((1.0,), domains=(domain,))
    measured = Evaluation(margin=0.01).as_measured(quality.seqlen)
    assert asdict(measured) == asdict(Evaluation(margin=0.01, seqlen=128))
    assert Evaluation().as_measured(Quality((1.0,)).seqlen) == Evaluation()
