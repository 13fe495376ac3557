"""Calibration text as token windows: from a data set, a file, or the model's own mouth.

Two samplings, because the reference code and the paper differ: ``rows`` joins a few raw rows
and takes the windows that fit (4 or 5 of 2048), ``windows`` takes as many windows as asked.

The windows that a run is calibrated on, of one source or of several, and what to say of them.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from pruning.spec.prune import Calibration, CalibrationSpec, Dataset, Sampling

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


def _calibrate_source(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """The windows that ``spec`` describes for this model. Raises ``CalibrationError``."""
    return _windows(spec, model, tokenizer, split="train")


def _held_out_source(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on: the test split, own text of another seed, the rest of a file.

    A file may have no rest; then they are the calibration windows, and the source says so.
    """
    if spec.dataset is Dataset.SELF:
        return _windows(replace(spec, seed=spec.seed + 1), model, tokenizer, split="test")
    if spec.path is None:
        return _windows(spec, model, tokenizer, split="test")
    used, rest = _cut(read_file(Path(spec.path)), spec, tokenizer)
    if rest.shape[0]:
        return Windows(rest, f"file {spec.path}, other windows than the calibration's")
    return Windows(used, f"file {spec.path}, the calibration's own windows: it has no others")


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
        used, _ = _cut(read_file(Path(spec.path)), spec, tokenizer)
        return Windows(used, f"file {spec.path}")
    used, _ = _cut(hub_corpus(spec.dataset, split), spec, tokenizer)
    return Windows(used, f"{spec.dataset} {split}")


def _cut(
    corpus: Corpus, spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows that ``spec`` asks for, and up to as many others of the same text."""
    rng = random.Random(spec.seed)  # noqa: S311 - a reproducible sample, not a secret
    wanted = spec.num_samples
    if spec.sampling is Sampling.ROWS:
        rows = rng.sample(corpus.rows, len(corpus.rows))
        used, rest = (
            all_windows(corpus.separator.join(part), spec.seqlen, tokenizer)
            for part in (rows[:wanted], rows[wanted : 2 * wanted])
        )
    else:
        windows = all_windows(corpus.separator.join(corpus.rows), spec.seqlen, tokenizer)
        order = rng.sample(range(len(windows)), len(windows))
        used, rest = windows[sorted(order[:wanted])], windows[sorted(order[wanted : 2 * wanted])]
    least = 1 if spec.sampling is Sampling.ROWS else wanted
    if len(used) < least:
        raise CalibrationError(
            "not_enough_text",
            f"the text gives {len(used)} windows of {spec.seqlen} tokens, {least} are needed: "
            f"add text, or ask for fewer samples or a smaller seqlen",
        )
    return used, rest


def all_windows(text: str, seqlen: int, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """As many windows ``[num_windows, seqlen]`` as the text gives; what is left over is dropped."""
    token_ids = torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.int64)
    num_windows = len(token_ids) // seqlen
    return token_ids[: num_windows * seqlen].view(num_windows, seqlen)


def read_file(path: Path) -> Corpus:
    """Rows of a UTF-8 file: its lines, or the ``text`` of every record of a ``.jsonl``."""
    lines = read_text(path).splitlines()
    rows = lines
    if path.suffix == ".jsonl":
        rows = [_text_of(line, path, at) for at, line in enumerate(lines, 1) if line.strip()]
    if not any(row.strip() for row in rows):
        raise CalibrationError("empty_text", f"{path} holds no text")
    return Corpus(rows, "\n")


def read_text(path: Path) -> str:
    """All of a UTF-8 file. Raises ``CalibrationError``."""
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise CalibrationError(
                "file_too_large", f"{path} has {size} bytes, the limit is {MAX_FILE_BYTES}"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            "wrong_encoding", f"{path} is not UTF-8 (byte {error.start}): convert it first"
        ) from error
    except OSError as error:
        raise CalibrationError("file_unreadable", f"{path}: {error.strerror}") from error


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


def hub_corpus(dataset: Dataset, split: str) -> Corpus:
    """Of ``wikitext2`` or ``c4``, the split ``train`` or ``test``. Raises ``CalibrationError``."""
    return _HUB_CORPORA[dataset](split)


MAX_BEGINNING = 80  # characters of a window that are quoted
_TOKENS_QUOTED = 40  # enough for so many characters of common text


@dataclass(frozen=True)
class MixedWindows(Windows):
    """Windows of several sources; ``origins`` says which, for each of them."""

    origins: tuple[str, ...]


def calibrate(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """The windows that ``spec`` describes for this model. Raises ``CalibrationError``."""
    return mixed([_calibrate_source(part, model, tokenizer) for part in spec.parts])


def held_out(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on, as many of each source as it is calibrated on, where there are."""
    return mixed([_held_out_source(part, model, tokenizer) for part in spec.parts])


def mixed(parts: Sequence[Windows]) -> Windows:
    """All windows of all parts, each part spread evenly: the first few stand for the whole."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part.token_ids) for part in parts]
    order = sorted(
        ((at + 0.5) / size, number, at) for number, size in enumerate(sizes) for at in range(size)
    )
    return MixedWindows(
        token_ids=torch.stack([parts[number].token_ids[at] for _, number, at in order]),
        source=" + ".join(f"{len(part.token_ids)} × {part.source}" for part in parts),
        origins=tuple(parts[number].source for _, number, _ in order),
    )


def described(windows: Windows, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """As JSON: the digest of all windows; source, digest and first words of each."""
    num_windows, seqlen = windows.token_ids.shape
    origins = (
        windows.origins if isinstance(windows, MixedWindows) else [windows.source] * num_windows
    )
    return {
        "source": windows.source,
        "num_windows": num_windows,
        "seqlen": seqlen,
        "digest": windows.digest,
        "windows": [
            {
                "source": origin,
                "digest": Windows(token_ids.unsqueeze(0), origin).digest,
                "begins": beginning(str(tokenizer.decode(token_ids[:_TOKENS_QUOTED]))),
            }
            for origin, token_ids in zip(origins, windows.token_ids, strict=True)
        ],
    }


def beginning(text: str) -> str:
    """The first words in one line that any terminal can show: nothing in it is obeyed."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:MAX_BEGINNING].rstrip()
