"""The windows that a run is calibrated on, of one source or of several, and what to say of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data import calibration
from pruning.data.calibration import Windows
from pruning.spec.prune import Calibration

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
    return mixed([calibration.calibrate(part, model, tokenizer) for part in spec.parts])


def held_out(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on, as many of each source as it is calibrated on, where there are."""
    return mixed([calibration.held_out(part, model, tokenizer) for part in spec.parts])


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
