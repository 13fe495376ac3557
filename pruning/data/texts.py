"""Texts to measure perplexity on, as token windows: packaged, those of the paper, or any file.

WikiText-2 is the test split. C4 is the first 1100 documents of the validation split, of which the
first 256 windows count (arXiv 2402.09025 and its authors' code). A text of the paper is read from
the folder of texts if its file is there, and otherwise from the Hugging Face hub. A packaged text
is its evaluation documents.
"""

from difflib import get_close_matches
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.corpora import (
    HUB_CORPORA,
    CalibrationError,
    Corpus,
    HubCorpus,
    Split,
    read_rows,
    read_text,
)
from pruning.data.documents import draw_kinds, packaged_documents
from pruning.data.windows import Windows, all_windows, behind_beginning
from pruning.spec.calibration import PACKAGED, Dataset

DEFAULT_SEQLEN = 2048  # of the paper
MAX_PACKAGED_TOKENS = 2**15  # of a packaged text, unless more windows are asked for


class TextUnusable(ValueError):
    """The text does not exist, cannot be read, or is shorter than one window."""


def check_text_name(name: str, texts_dir: Path) -> None:
    """Raise ``TextUnusable`` for what is neither a data set nor a file, before a model is read."""
    known = [dataset.value for dataset in (*PACKAGED, *HUB_CORPORA)]
    if name in known or (texts_dir / name).is_file() or Path(name).is_file():
        return
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"available data sets: {', '.join(known)}"
    raise TextUnusable(f"text {name!r} not found: expected a data set or an existing file; {meant}")


def text_windows(
    name: str,
    texts_dir: Path,
    model: PreTrainedModel | int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seqlen: int,
    num_windows: int | None = None,
) -> Windows:
    """The first ``num_windows`` windows of ``seqlen`` tokens of a text, by default all that count.

    ``name`` is a packaged text, ``wikitext2``, ``c4``, a file in ``texts_dir``, or any path. A file
    counts as one text; the records of a ``.jsonl`` are joined by blank lines. A
    model of another process is given by its longest window. Raises ``TextUnusable``.
    """
    max_seqlen = model if isinstance(model, int) else _positions(model)
    if not 2 <= seqlen <= (max_seqlen or seqlen):
        raise TextUnusable(
            f"seqlen={seqlen}: this model supports windows of 2 to {max_seqlen} tokens"
        )
    if name in PACKAGED:
        wanted = num_windows or MAX_PACKAGED_TOKENS // seqlen
        documents = packaged_documents(Dataset(name))[Split.EVALUATION]
        windows = draw_kinds(documents, wanted, seqlen, 0, tokenizer).token_ids
        named = behind_beginning(f"packaged {name}", tokenizer)
        source = f"{named}, {Split.EVALUATION} documents"
    else:
        text, origin, max_windows = _text(name, texts_dir)
        source = behind_beginning(origin, tokenizer)
        windows = all_windows(text, seqlen, tokenizer)
        wanted = min(max_windows or len(windows), num_windows or len(windows))
    if not len(windows):
        raise TextUnusable(
            f"{source} is shorter than one window of {seqlen} tokens: reduce seqlen, or use "
            "a longer text"
        )
    return Windows(windows[:wanted], source)


def default_seqlen(model: PreTrainedModel) -> int:
    """The window length of the paper, or all positions of a model that has fewer."""
    return min(DEFAULT_SEQLEN, _positions(model) or DEFAULT_SEQLEN)


def _positions(model: PreTrainedModel) -> int | None:
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    return positions


def _text(name: str, texts_dir: Path) -> tuple[str, str, int | None]:
    """The text, its source, and how many of its windows count (None: all)."""
    try:
        for dataset, known in HUB_CORPORA.items():
            if name == dataset.value:
                corpus, source = _evaluation_text(known, name, texts_dir)
                rows = corpus.rows[: known.max_evaluation_rows]
                return Corpus(rows, corpus.separator).text, source, known.max_evaluation_windows
        path = texts_dir / name if (texts_dir / name).is_file() else Path(name)
        text = Corpus(read_rows(path), "\n\n").text if path.suffix == ".jsonl" else read_text(path)
    except CalibrationError as error:
        raise TextUnusable(str(error)) from error
    return text, f"file {path}", None


def _evaluation_text(known: HubCorpus, name: str, texts_dir: Path) -> tuple[Corpus, str]:
    """The evaluation split, and its source."""
    path, split = texts_dir / known.local_file, known.parts[Split.EVALUATION].split
    if path.is_file():
        return Corpus(known.read_rows(path), known.separator), f"{name} {split} ({path})"
    try:
        return known.load(Split.EVALUATION), f"{name} {split}"
    except CalibrationError as error:
        raise TextUnusable(
            f"{name} is not at {path}, and the hub cannot be reached ({error.__cause__}): "
            "put the file there"
        ) from error
