"""Calibration text as token windows: from a data set, a file, or the model's own mouth.

Two samplings, because the reference code and the paper differ: ``rows`` joins a few raw rows
and takes the windows that fit (4 or 5 of 2048), ``windows`` takes as many windows as asked.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from pruning.spec import CalibrationSpec, Dataset, Sampling

MAX_FILE_BYTES = 2**30
NUM_C4_DOCUMENTS = 4096  # about two million tokens, eight times what the paper samples from


class CalibrationError(ValueError):
    """The text asked for cannot be turned into the windows asked for; ``code`` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Corpus:
    """Rows of raw text and what joins them."""

    rows: Sequence[str]
    separator: str


@dataclass(frozen=True)
class Windows:
    """Token ids ``[num_windows, seqlen]`` (int64) and where they came from."""

    token_ids: torch.Tensor
    source: str

    @property
    def digest(self) -> str:
        """Hex sha256 of shape and ids: the same digest means the same calibration."""
        header = ",".join(str(size) for size in self.token_ids.shape).encode()
        return hashlib.sha256(header + self.token_ids.numpy().astype("<i8").tobytes()).hexdigest()


def calibrate(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """The windows that ``spec`` describes for this model. Raises ``CalibrationError``."""
    return _windows(spec, model, tokenizer, split="train")


def held_out(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on: the test split, own text of another seed, or the same file.

    A file has no second half that could be trusted to be alike, and the source says so.
    """
    if spec.dataset is Dataset.SELF:
        spec = replace(spec, seed=spec.seed + 1)
    return _windows(spec, model, tokenizer, split="test")


def _windows(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str
) -> Windows:
    max_positions = getattr(model.config, "max_position_embeddings", None)
    if max_positions is not None and spec.seqlen > max_positions:
        raise CalibrationError(
            "seqlen_too_long",
            f"seqlen={spec.seqlen} is beyond the {max_positions} positions of this model",
        )
    if spec.dataset is Dataset.SELF:
        source = f"self (seed {spec.seed})"
        return Windows(sampled_text(model, spec.num_samples, spec.seqlen, spec.seed), source)
    if spec.path is not None:
        return Windows(_cut(read_file(Path(spec.path)), spec, tokenizer), f"file {spec.path}")
    corpus = _HUB_CORPORA[spec.dataset](split)
    return Windows(_cut(corpus, spec, tokenizer), f"{spec.dataset} {split}")


def _cut(corpus: Corpus, spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    rng = random.Random(spec.seed)  # noqa: S311 - a reproducible sample, not a secret
    rows = list(corpus.rows)
    if spec.sampling is Sampling.ROWS:
        rng.shuffle(rows)
        rows = rows[: spec.num_samples]
    token_ids = tokenizer(corpus.separator.join(rows), verbose=False).input_ids
    num_windows, wanted = len(token_ids) // spec.seqlen, spec.num_samples
    if num_windows == 0 or (spec.sampling is Sampling.WINDOWS and num_windows < wanted):
        raise CalibrationError(
            "not_enough_text",
            f"the text gives {len(token_ids)} tokens, {num_windows} windows of {spec.seqlen}: "
            f"add text, or ask for fewer samples or a smaller seqlen",
        )
    windows = torch.tensor(token_ids[: num_windows * spec.seqlen]).view(num_windows, spec.seqlen)
    if spec.sampling is Sampling.WINDOWS:
        windows = windows[sorted(rng.sample(range(num_windows), wanted))]
    return windows


def read_file(path: Path) -> Corpus:
    """Rows of a UTF-8 file: its lines, or the ``text`` of every record of a ``.jsonl``."""
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise CalibrationError(
                "file_too_large", f"{path} has {size} bytes, the limit is {MAX_FILE_BYTES}"
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CalibrationError(
            "wrong_encoding", f"{path} is not UTF-8 (byte {error.start}): convert it first"
        ) from error
    except OSError as error:
        raise CalibrationError("file_unreadable", f"{path}: {error.strerror}") from error
    rows = lines
    if path.suffix == ".jsonl":
        rows = [_text_of(line, path, at) for at, line in enumerate(lines, 1) if line.strip()]
    if not any(row.strip() for row in rows):
        raise CalibrationError("empty_text", f"{path} holds no text")
    return Corpus(rows, "\n")


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError("bad_record", f"{path}:{number} is not JSON: {error.msg}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise CalibrationError("bad_record", f'{path}:{number}: expected {{"text": "..."}}')
    return str(record["text"])


@torch.inference_mode()
def sampled_text(model: PreTrainedModel, num_windows: int, seqlen: int, seed: int) -> torch.Tensor:
    """Windows ``[num_windows, seqlen]`` that the model writes, each from its first token on."""
    assert isinstance(model, GenerationMixin)
    start = model.generation_config.bos_token_id
    if start is None:
        start = model.config.bos_token_id or 0
    token_ids = torch.full((num_windows, 1), int(start), device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        sampled: torch.Tensor = model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            max_length=seqlen,
            min_length=seqlen,
        )
    return sampled.cpu()


def _wikitext2(split: str) -> Corpus:
    rows = _hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1", split)
    return Corpus(rows, "\n\n")


def _c4(split: str) -> Corpus:
    """The first shard of the training text, or the validation text, as the paper takes them."""
    name = {"train": "train", "test": "validation"}[split]
    num_shards = {"train": "01024", "test": "00008"}[split]
    file = f"en/c4-{name}.00000-of-{num_shards}.json.gz"
    return Corpus(
        _hub_rows("allenai/c4", None, name, data_files={name: file})[:NUM_C4_DOCUMENTS], " "
    )


def _hub_rows(
    repo: str, config: str | None, split: str, data_files: dict[str, str] | None = None
) -> list[str]:
    from datasets import load_dataset  # noqa: PLC0415 - half a second that most runs do not need

    try:
        rows = load_dataset(repo, config, split=split, data_files=data_files)["text"]
    except Exception as error:  # a dozen classes, from DNS to disk quota
        raise CalibrationError(
            "dataset_unreachable",
            f"cannot load data set {repo}: {type(error).__name__}: {error}. Use dataset 'file' "
            f"with a text of your own, or 'self', where there is no network",
        ) from error
    return list(rows)


_HUB_CORPORA: dict[Dataset, Callable[[str], Corpus]] = {
    Dataset.WIKITEXT2: _wikitext2,
    Dataset.C4: _c4,
}
