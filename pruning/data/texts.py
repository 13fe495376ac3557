"""Texts that perplexity is measured on, as token windows: those of the paper, or any file.

WikiText-2 is the test split, its rows joined by blank lines. C4 is the first 1100 documents of the
validation split, joined by spaces, of which the first 256 windows count (arXiv 2402.09025 and the
code of its authors). Either is taken from the folder of texts if it is there, else from the hub.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.calibration import (
    CalibrationError,
    Corpus,
    Windows,
    all_windows,
    hub_corpus,
    read_file,
    read_text,
)
from pruning.spec.prune import Dataset

_C4_DOCUMENTS = 1100


class TextUnusable(ValueError):
    """The text asked for is not there, or gives no windows of the length asked for."""


@dataclass(frozen=True)
class _Known:
    """A text of the paper: the file that may hold it, and how it is read from there."""

    dataset: Dataset
    split: str  # what the hub calls it
    file: str
    read: Callable[[Path], Corpus]
    max_documents: int | None = None
    max_windows: int | None = None


def _lines(path: Path) -> Corpus:
    """Rows as the hub has them: a line with its end, or nothing for a blank one."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return Corpus([f"{line}\n" if line.strip() else "" for line in lines], "\n\n")


def _documents(path: Path) -> Corpus:
    return Corpus(read_file(path).rows, " ")


_KNOWN: Mapping[str, _Known] = MappingProxyType(
    {
        "wikitext2": _Known(Dataset.WIKITEXT2, "test", "wikitext2-test.txt", _lines),
        "c4": _Known(
            Dataset.C4, "validation", "c4-validation.jsonl", _documents, _C4_DOCUMENTS, 256
        ),
    }
)


def text_windows(
    name: str,
    texts_dir: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seqlen: int,
    num_windows: int | None = None,
) -> Windows:
    """The first ``num_windows`` windows of ``seqlen`` tokens of a text, or all that count.

    ``name`` is ``wikitext2``, ``c4``, a file in ``texts_dir``, or any file: its whole text, or the
    ``text`` of each record of a ``.jsonl``, joined by blank lines. Raises ``TextUnusable``.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not 2 <= seqlen <= (positions or seqlen):
        raise TextUnusable(f"seqlen={seqlen}: this model takes windows of 2 to {positions} tokens")
    text, source, most = _text(name, texts_dir)
    windows = all_windows(text, seqlen, tokenizer)
    wanted = min(most or len(windows), num_windows or len(windows))
    if not len(windows):
        raise TextUnusable(
            f"{source} gives not one window of {seqlen} tokens: choose a smaller seqlen, or a "
            "longer text"
        )
    return Windows(windows[:wanted], source)


def _text(name: str, texts_dir: Path) -> tuple[str, str, int | None]:
    """The text, where it comes from, and how many windows of it count if not all."""
    try:
        if (known := _KNOWN.get(name)) is not None:
            corpus, source = _of_paper(known, name, texts_dir)
            rows = islice(corpus.rows, known.max_documents)
            return corpus.separator.join(rows), source, known.max_windows
        path = texts_dir / name if (texts_dir / name).is_file() else Path(name)
        if path.suffix == ".jsonl":
            return "\n\n".join(read_file(path).rows), f"file {path}", None
        return read_text(path), f"file {path}", None
    except CalibrationError as error:
        raise TextUnusable(str(error)) from error


def _of_paper(known: _Known, name: str, texts_dir: Path) -> tuple[Corpus, str]:
    path = texts_dir / known.file
    if path.is_file():
        return known.read(path), f"{name} {known.split} ({path})"
    try:
        return hub_corpus(known.dataset, "test"), f"{name} {known.split}"
    except CalibrationError as error:
        raise TextUnusable(
            f"{name} is neither at {path} nor to be had from the hub, where there is no network: "
            f"put it there ({error.__cause__})"
        ) from error
