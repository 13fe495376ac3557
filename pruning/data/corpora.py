"""Text as rows: files, and the two corpora of the paper, WikiText-2 and C4 (arXiv 2402.09025).

The corpora come from the Hugging Face hub. The text to evaluate on may also lie in a local file.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pruning.extras import has_extra, missing_extra
from pruning.spec.calibration import Dataset

MAX_FILE_BYTES = 2**30
NOT_ENOUGH = "not_enough_text"  # the code of a text that gives too few windows


class CalibrationError(ValueError):
    """The text cannot be read or gives too few windows; ``code`` is the error code of the job.

    ``param`` is the field of the job that has to change, where it is known.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True)
class Corpus:
    """Rows of raw text, and the string that joins them."""

    rows: Sequence[str]
    separator: str

    @property
    def text(self) -> str:
        return self.separator.join(self.rows)


class Split(StrEnum):
    """Which documents a use of text may take: those of different splits are never the same."""

    CALIBRATION = "calibration"
    SELECTION = "selection"
    EVALUATION = "evaluation"


@dataclass(frozen=True)
class HubPart:
    """Where the rows of a split begin on the hub, and how many bytes they have at most."""

    split: str
    max_bytes: int
    start: int = 0


@dataclass(frozen=True)
class HubCorpus:
    """A data set on the hub, with different rows for each split."""

    repo: str
    config: str | None
    separator: str
    parts: Mapping[Split, HubPart]
    local_file: str  # name of a file with the evaluation split, in the folder of texts
    read_rows: Callable[[Path], Sequence[str]]  # of that file
    shards: Mapping[str, str] | None = None  # by the hub's split; None loads all of it
    max_rows: int | None = None  # of a part
    max_evaluation_rows: int | None = None
    max_evaluation_windows: int | None = None

    def load(self, split: Split) -> Corpus:
        """Download a split, or take it from the cache. Raises ``CalibrationError``."""
        check_hub(self.repo)
        from datasets import load_dataset  # noqa: PLC0415 - an extra

        part = self.parts[split]
        files = None if self.shards is None else {part.split: self.shards[part.split]}
        try:
            rows = load_dataset(self.repo, self.config, split=part.split, data_files=files)["text"]
        except Exception as error:  # a dozen classes, from DNS to disk quota
            raise CalibrationError(
                "dataset_unreachable",
                f"cannot load data set {self.repo}: {type(error).__name__}: {error}. Without a "
                "network, use packaged text such as dataset 'prose', or dataset 'file' with "
                "your own text",
            ) from error
        stop = None if self.max_rows is None else part.start + self.max_rows
        return Corpus(list(rows[part.start : stop]), self.separator)  # a shard has millions


def check_hub(repo: str) -> None:
    """Raise ``CalibrationError`` without the extra that reads data sets of the hub."""
    if not has_extra("datasets"):
        raise CalibrationError("extra_missing", missing_extra("datasets", f"data set {repo}"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ``CalibrationError`` for a file that is too large, not UTF-8, or not readable."""
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise CalibrationError(
                "file_too_large",
                f"{path} has {size} bytes, more than the limit of {MAX_FILE_BYTES}",
            )
        yield
    except UnicodeDecodeError as error:
        raise CalibrationError(
            "wrong_encoding", f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8 first"
        ) from error
    except OSError as error:
        raise CalibrationError("file_unreadable", f"{path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file. Raises ``CalibrationError``."""
    with reading(path):
        return path.read_text(encoding="utf-8-sig")


def read_rows(path: Path) -> list[str]:
    """The lines of a UTF-8 file, or the ``text`` of every record of a ``.jsonl`` file.

    Raises ``CalibrationError``, also for a file without any text.
    """
    rows = read_text(path).splitlines()
    if path.suffix == ".jsonl":
        rows = [text_of_record(line, path, at) for at, line in enumerate(rows, 1) if line.strip()]
    if not any(row.strip() for row in rows):
        raise no_text(path)
    return rows


def no_text(path: Path) -> CalibrationError:
    return CalibrationError("empty_text", f"{path} contains no text")


def text_of_record(line: str, path: Path, number: int) -> str:
    """The text of a line of a ``.jsonl`` file. Raises ``CalibrationError``."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError("bad_record", f"{path}:{number} is not JSON: {error.msg}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise CalibrationError("bad_record", f'{path}:{number}: expected {{"text": "..."}}')
    return str(record["text"])


def _wikitext_rows(path: Path) -> list[str]:
    """Rows as on the hub: each line with its line break, and "" for a blank line."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [f"{line}\n" if line.strip() else "" for line in lines]


# Splits, separators and sizes are those of the paper and of its authors' code. Of C4 they take the
# first shard; 4096 documents are about two million tokens, eight times the paper's sample.
_C4_ROWS, _C4_BYTES = 4096, 2**24
HUB_CORPORA: Mapping[Dataset, HubCorpus] = {
    Dataset.WIKITEXT2: HubCorpus(
        repo="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        separator="\n\n",
        parts={
            Split.CALIBRATION: HubPart("train", 12_000_000),
            Split.SELECTION: HubPart("validation", 1_500_000),
            Split.EVALUATION: HubPart("test", 1_500_000),
        },
        local_file="wikitext2-test.txt",
        read_rows=_wikitext_rows,
    ),
    Dataset.C4: HubCorpus(
        repo="allenai/c4",
        config=None,
        separator=" ",
        parts={
            Split.CALIBRATION: HubPart("train", _C4_BYTES),
            Split.SELECTION: HubPart("train", _C4_BYTES, start=_C4_ROWS),
            Split.EVALUATION: HubPart("validation", _C4_BYTES),
        },
        local_file="c4-validation.jsonl",
        read_rows=read_rows,
        shards={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        max_rows=_C4_ROWS,
        max_evaluation_rows=1100,
        max_evaluation_windows=256,
    ),
}
