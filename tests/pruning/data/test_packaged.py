"""The packaged texts: large enough, with their splits apart, and read no further than needed."""

from collections.abc import Sequence
from copy import copy
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from pruning.data.calibration import calibrate, evaluation_windows, repair_windows
from pruning.data.corpora import Split
from pruning.data.documents import FOLDER, draw, packaged_documents, passages
from pruning.data.texts import (
    DEFAULT_SEQLEN,
    MAX_PACKAGED_TOKENS,
    default_seqlen,
    text_windows,
)
from pruning.models.store import LoadedModel
from pruning.spec.calibration import (
    PACKAGED,
    CalibrationSpec,
    Dataset,
    Sampling,
    default_calibration,
)
from tools.texts.packaged import PackagedDocument, read_documents, write_documents

MAX_BYTES = 3_500_000
CHARACTERS_PER_TOKEN = 4.6  # at most, of the demo model on prose


def every(dataset: Dataset, split: Split) -> list[str]:
    """The texts of all kinds."""
    return [*chain.from_iterable(packaged_documents(dataset)[split].values())]


def test_they_are_small_and_say_where_they_come_from() -> None:
    files = sorted(path.name for path in FOLDER.iterdir())
    licences = ["LICENSES", *(f"LICENSE-{name}" for name in ("Artistic", "GPL-2", "PSF"))]
    assert files == sorted([*(f"{name}.jsonl.gz" for name in PACKAGED), *licences, "SOURCES.md"])
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES
    told = (FOLDER / "SOURCES.md").read_text()
    for dataset in PACKAGED:
        for document in read_documents(FOLDER / f"{dataset}.jsonl.gz"):
            work = document.source.split(",")[0].rstrip(" 0123456789")
            assert work in told
            assert f"| {document.kind} |" in told


@pytest.mark.parametrize("dataset", PACKAGED)
def test_each_is_long_enough_to_calibrate_and_to_measure(dataset: Dataset) -> None:
    sizes = {split: sum(map(len, every(dataset, split))) for split in Split}
    num_tokens = {split: size / CHARACTERS_PER_TOKEN for split, size in sizes.items()}
    assert num_tokens[Split.CALIBRATION] > 110_000
    assert num_tokens[Split.EVALUATION] > 2 * 40 * 512
    assert num_tokens[Split.SELECTION] > 40 * 512


@pytest.mark.parametrize("dataset", PACKAGED)
def test_no_paragraph_is_in_two_splits(dataset: Dataset) -> None:
    found = {
        split: {
            line for text in every(dataset, split) for line in text.splitlines() if len(line) > 150
        }
        for split in Split
    }
    for one, other in combinations(Split, 2):
        assert not found[one] & found[other]


@pytest.mark.slow
def test_equal_documents_give_equal_files(tmp_path: Path) -> None:
    for dataset in PACKAGED:
        documents = read_documents(FOLDER / f"{dataset}.jsonl.gz")
        write_documents(tmp_path / "again.gz", documents)
        assert read_documents(tmp_path / "again.gz") == documents
    text = PackagedDocument("é\n", "a book", Split.SELECTION, "fiction")
    write_documents(tmp_path / "one.gz", [text])
    write_documents(tmp_path / "two.gz", [text])
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_the_default_calibration_is_of_prose_and_code(tiny_loaded: LoadedModel) -> None:
    spec = default_calibration(num_samples=6, seqlen=16)
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    windows = calibrate(spec, model, tokenizer)
    assert windows.token_ids.shape == (6, 16)
    assert windows.source == (
        "3 × packaged prose, calibration documents + 3 × packaged code, calibration documents"
    )
    repair = repair_windows(spec, model, tokenizer)
    assert {name: len(part.token_ids) for name, part in repair.train.items()} == {
        "prose": 96,
        "code": 96,
    }
    assert {name: len(part.token_ids) for name, part in repair.selection.items()} == {
        "prose": 4,
        "code": 4,
    }


@pytest.mark.parametrize("sampling", Sampling)
def test_every_use_takes_documents_of_its_own_split(
    tiny_loaded: LoadedModel, sampling: Sampling
) -> None:
    spec = CalibrationSpec(Dataset.DOCUMENTATION, sampling, num_samples=3, seqlen=8)
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    repair = repair_windows(spec, model, tokenizer)
    found = {
        Split.CALIBRATION: [calibrate(spec, model, tokenizer), repair.train["documentation"]],
        Split.SELECTION: [repair.selection["documentation"]],
        Split.EVALUATION: [evaluation_windows(spec, model, tokenizer)["documentation"]],
    }
    for split, parts in found.items():
        texts = [" ".join(text.split()) for text in every(spec.dataset, split)]
        for windows in parts:
            assert windows.source == f"packaged documentation, {split} documents"
            if sampling is Sampling.ROWS:
                continue  # a window may join two rows
            for window in tokenizer.batch_decode(windows.token_ids[:, :4]):  # some repeat these
                assert any(" ".join(window.split()) in text for text in texts)


def test_every_run_is_measured_on_every_packaged_domain(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "wiki.txt").write_text("\n".join(f"{n} lazy dogs" for n in range(300)))
    spec = CalibrationSpec(
        Dataset.FILE, num_samples=3, seqlen=8, path=str(tmp_path / "wiki.txt"), seed=7
    )
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    found = evaluation_windows(spec, model, tokenizer)
    assert {name: len(part.token_ids) for name, part in found.items()} == {
        "wiki": 3,
        "prose": 3,
        "code": 3,
        "documentation": 3,
    }
    assert set(repair_windows(spec, model, tokenizer).train) == {"wiki"}
    assert set(repair_windows(spec, model, tokenizer).selection) == {"wiki", "prose", "code"}
    usual = evaluation_windows(default_calibration(num_samples=6, seqlen=8), model, tokenizer)
    assert list(usual) == ["documentation", "prose", "code"]
    assert [name for name, of in usual.items() if "took no part" in of.source] == ["documentation"]
    for name in ("prose", "code", "documentation"):
        assert usual[name].digest == found[name].digest


def test_a_file_named_as_a_packaged_text_takes_its_place(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "code.txt").write_text("\n".join(f"{n} lazy dogs" for n in range(300)))
    spec = CalibrationSpec(Dataset.FILE, num_samples=3, seqlen=8, path=str(tmp_path / "code.txt"))
    found = evaluation_windows(spec, tiny_loaded.model, tiny_loaded.tokenizer)
    assert found["code"].source.startswith("file ")


class CountingTokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.num_characters = 0

    def __call__(self, text: str, **settings: Any) -> Any:
        self.num_characters += len(text)
        return self.tokenizer(text, **settings)


def test_only_as_much_is_tokenized_as_is_needed(tiny_loaded: LoadedModel) -> None:
    documents = every(Dataset.PROSE, Split.CALIBRATION)
    tokenizer: Any = CountingTokenizer(tiny_loaded.tokenizer)
    assert len(draw(documents, 5, 16, 0, tokenizer)) == 5
    assert tokenizer.num_characters <= 5 * 3 * 8 * 16


def num_kept(documents: Sequence[str], tokenizer: Any) -> int:
    return len(draw(documents, 10**6, 16, 0, tokenizer))


def test_a_draw_gives_all_windows_if_there_are_no_more(tiny_loaded: LoadedModel) -> None:
    documents = ["the quick brown fox jumps over the lazy dog\n" * 30] * 3
    texts = passages(documents, 8 * 16)
    lengths = [len(tiny_loaded.tokenizer(each.text).input_ids) for each in texts]
    expected = sum(length // 16 for length in lengths)
    assert num_kept(documents, tiny_loaded.tokenizer) == expected


def test_perplexity_is_measured_on_evaluation_documents(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    windows = text_windows("code", tmp_path, model, tokenizer, seqlen=128)
    assert windows.token_ids.shape == (MAX_PACKAGED_TOKENS // 128, 128)
    assert windows.source == "packaged code, evaluation documents"
    first = text_windows("code", tmp_path, model, tokenizer, seqlen=128, num_windows=3)
    assert first.token_ids.tolist() == windows.token_ids[:3].tolist()
    spec = CalibrationSpec(Dataset.CODE, num_samples=3, seqlen=128)
    of_job = evaluation_windows(spec, model, tokenizer)["code"]
    assert first.digest == of_job.digest


def test_windows_are_as_long_as_the_paper_has_them_or_as_the_model_takes(
    tiny_loaded: LoadedModel,
) -> None:
    model = tiny_loaded.model
    assert default_seqlen(model) == model.config.max_position_embeddings < DEFAULT_SEQLEN
    longer = copy(model)
    longer.config = copy(model.config)
    longer.config.max_position_embeddings = 2 * DEFAULT_SEQLEN
    assert default_seqlen(longer) == DEFAULT_SEQLEN
    del longer.config.max_position_embeddings
    assert default_seqlen(longer) == DEFAULT_SEQLEN
