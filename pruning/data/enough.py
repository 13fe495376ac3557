"""Whether there is enough text for a calibration, told without its model, before a job is recorded.

A file is read only as far as it takes to know, unless rows are sampled. Text of the hub and of the
model itself is not read: only a worker has it. Of text of the hub, the size is known.
"""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pruning.data.corpora import (
    HUB_CORPORA,
    NOT_ENOUGH,
    CalibrationError,
    HubCorpus,
    Split,
    check_hub,
    no_text,
    reading,
    text_of_record,
)
from pruning.data.sources import Use, check_enough, file_source, packaged_source
from pruning.data.windows import text_tokens
from pruning.spec.calibration import PACKAGED, Calibration, CalibrationSpec, Sampling

_PIECE = 2**16  # characters that are tokenized at once: some megabytes of memory


def check_text(spec: Calibration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``CalibrationError`` if a source cannot give the windows that it has to give.

    It names the field of the job that this depends on.
    """
    for at, part in enumerate(spec.parts):
        try:
            _check_part(part, tokenizer)
        except CalibrationError as error:
            source = "calibration" if isinstance(spec, CalibrationSpec) else f"calibration.{at}"
            error.param = f"{source}.{_field_of(error, part)}"
            raise


def _field_of(error: CalibrationError, part: CalibrationSpec) -> str:
    if error.code == NOT_ENOUGH:
        return "num_samples"
    return "dataset" if part.path is None else "path"


def _check_part(part: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    if part.dataset in PACKAGED:
        packaged_source(part, tokenizer).windows(Use.CALIBRATION)
    elif part.dataset in HUB_CORPORA:
        size = text_tokens(part.seqlen, tokenizer)
        _check_corpus(part, HUB_CORPORA[part.dataset], size)
    elif part.path is not None:
        with reading(Path(part.path)):
            _check_file(part, Path(part.path), tokenizer)


def _check_corpus(part: CalibrationSpec, corpus: HubCorpus, window_tokens: int) -> None:
    """No text has more tokens than bytes, so some windows are too many for any tokenizer."""
    check_hub(corpus.repo)
    most = corpus.parts[Split.CALIBRATION].max_bytes // window_tokens
    if part.sampling is Sampling.WINDOWS or most == 0:
        check_enough(part, most)


def _check_file(part: CalibrationSpec, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if part.sampling is Sampling.ROWS:  # which rows it takes depends on all of them
        file_source(part, path, tokenizer).windows(Use.CALIBRATION)
        return
    num_tokens, has_text, size = 0, False, text_tokens(part.seqlen, tokenizer)
    for piece in _pieces(path):
        has_text = has_text or bool(piece.strip())
        # a batch of one, as a single text is tokenized without letting other threads run
        of_piece = tokenizer([piece], add_special_tokens=False, verbose=False).input_ids[0]
        num_tokens += len(of_piece)
        if num_tokens >= part.num_samples * size:
            return
    if not has_text:
        raise no_text(path)
    check_enough(part, num_tokens // size)


def _pieces(path: Path) -> Iterator[str]:
    """The text in pieces. They give as many tokens as the whole, or a few more."""
    with path.open(encoding="utf-8-sig") as file:
        if path.suffix != ".jsonl":
            while piece := file.read(_PIECE):
                yield piece
            return
        waiting = ""
        for number, line in enumerate(file, 1):
            if line.strip():
                waiting += text_of_record(line, path, number) + "\n"
            if len(waiting) >= _PIECE:
                yield waiting
                waiting = ""
        yield waiting
