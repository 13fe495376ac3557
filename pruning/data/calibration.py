"""Token windows to calibrate and to evaluate on: from a corpus, a file, or the model itself.

There are two samplings, because the reference code and the paper differ: ``rows`` joins a few raw
rows and takes the windows that fit (4 or 5 of 2048 tokens), ``windows`` takes exactly as many
windows as requested. A mix takes windows from several sources.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.corpora import HUB_CORPORA, CalibrationError, Corpus, read_rows
from pruning.spec.calibration import Calibration, CalibrationSpec, Dataset, Sampling

MAX_EXCERPT = 80  # characters of a window that are quoted
_TOKENS_QUOTED = 40  # as a rule more than MAX_EXCERPT characters


@dataclass(frozen=True)
class Windows:
    """Token ids ``[num_windows, seqlen]`` (int64) and where they come from."""

    token_ids: torch.Tensor
    source: str

    @property
    def digest(self) -> str:
        """Hex sha256 of shape and ids: equal for equal windows in the same order."""
        header = ",".join(str(size) for size in self.token_ids.shape).encode()
        return hashlib.sha256(header + self.token_ids.numpy().astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class MixedWindows(Windows):
    """Windows of several sources; ``origins`` has the source of each window."""

    origins: tuple[str, ...]


def calibrate(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """The windows that ``spec`` describes for this model. Raises ``CalibrationError``."""
    return mixed([_calibration_windows(part, model, tokenizer) for part in spec.parts])


def held_out(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on, as many of each source as the calibration takes, if there are.

    A corpus gives windows of its evaluation split, the model other text of its own, and a file its
    unused windows. A file without any gives the calibration windows again, and ``source`` says so.
    Raises ``CalibrationError``.
    """
    return mixed([_held_out_windows(part, model, tokenizer) for part in spec.parts])


def mixed(parts: Sequence[Windows]) -> Windows:
    """The windows of all parts, each part spread evenly, so that any first few represent all."""
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
    """A JSON object: the digest of all windows, and source, digest and first words of each."""
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
                "begins": excerpt(str(tokenizer.decode(token_ids[:_TOKENS_QUOTED]))),
            }
            for origin, token_ids in zip(origins, windows.token_ids, strict=True)
        ],
    }


def excerpt(text: str) -> str:
    """The first words on one line, without control characters that a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:MAX_EXCERPT].rstrip()


def all_windows(text: str, seqlen: int, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """All windows ``[num_windows, seqlen]`` of the text in order; drops the last partial one."""
    token_ids = torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.int64)
    num_windows = len(token_ids) // seqlen
    return token_ids[: num_windows * seqlen].view(num_windows, seqlen)


@torch.inference_mode()
def sampled_text(model: PreTrainedModel, num_windows: int, seqlen: int, seed: int) -> torch.Tensor:
    """Sample windows ``[num_windows, seqlen]`` from the model, each from its first token on."""
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


def _calibration_windows(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    _check_seqlen(spec, model)
    if spec.dataset is Dataset.SELF:
        return _model_windows(spec, model)
    if spec.path is None:
        return _corpus_windows(spec, "train", tokenizer)
    used, _ = _cut(_file(spec.path), spec, tokenizer)
    return Windows(used, f"file {spec.path}")


def _held_out_windows(
    spec: CalibrationSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    _check_seqlen(spec, model)
    if spec.dataset is Dataset.SELF:
        return _model_windows(replace(spec, seed=spec.seed + 1), model)
    if spec.path is None:
        return _corpus_windows(spec, HUB_CORPORA[spec.dataset].evaluation_split, tokenizer)
    used, rest = _cut(_file(spec.path), spec, tokenizer)
    if rest.shape[0]:
        return Windows(rest, f"file {spec.path}, other windows than the calibration's")
    return Windows(used, f"file {spec.path}, the calibration's own windows: it has no others")


def _check_seqlen(spec: CalibrationSpec, model: PreTrainedModel) -> None:
    max_positions = getattr(model.config, "max_position_embeddings", None)
    if max_positions is not None and spec.seqlen > max_positions:
        raise CalibrationError(
            "seqlen_too_long",
            f"seqlen={spec.seqlen} is beyond the {max_positions} positions of this model",
        )


def _model_windows(spec: CalibrationSpec, model: PreTrainedModel) -> Windows:
    token_ids = sampled_text(model, spec.num_samples, spec.seqlen, spec.seed)
    return Windows(token_ids, f"self (seed {spec.seed})")


def _corpus_windows(
    spec: CalibrationSpec, split: str, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    used, _ = _cut(HUB_CORPORA[spec.dataset].load(split), spec, tokenizer)
    return Windows(used, f"{spec.dataset} {split}")


def _file(path: str) -> Corpus:
    return Corpus(read_rows(Path(path)), "\n")


def _cut(
    corpus: Corpus, spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows that ``spec`` asks for, and up to as many others of the same text."""
    rng = random.Random(spec.seed)  # noqa: S311 - a reproducible sample, not a secret
    wanted = spec.num_samples
    if spec.sampling is Sampling.ROWS:
        rows = rng.sample(corpus.rows, len(corpus.rows))
        used, rest = (
            all_windows(Corpus(part, corpus.separator).text, spec.seqlen, tokenizer)
            for part in (rows[:wanted], rows[wanted : 2 * wanted])
        )
    else:
        windows = all_windows(corpus.text, spec.seqlen, tokenizer)
        order = rng.sample(range(len(windows)), len(windows))
        used, rest = windows[sorted(order[:wanted])], windows[sorted(order[wanted : 2 * wanted])]
    least = 1 if spec.sampling is Sampling.ROWS else wanted
    if len(used) < least:
        raise CalibrationError(
            "not_enough_text",
            f"the text gives {len(used)} windows of {spec.seqlen} tokens, and {least} are needed: "
            "add text, or ask for fewer samples or a smaller seqlen",
        )
    return used, rest
