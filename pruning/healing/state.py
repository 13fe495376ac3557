"""The state of a training as one file, which is replaced as a whole.

It has tensors and numbers in safetensors' format: nothing is unpickled.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pruning.healing.record import Progress
from pruning.records import parse_record, read_record


class TrainingNotSaved(RuntimeError):
    """The disk takes no state of the training."""


_STATE = "state"
_PARTS = ("adapter", "best", "mean", "square")


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next step depends on. Tensors are by the names of the adapter's.

    ``best`` is the adapter at the best check; ``mean`` and ``square`` are the moments of the
    gradient that the optimiser keeps, none before the first step.
    """

    progress: Progress
    adapter: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor]
    mean: Mapping[str, torch.Tensor] = field(default_factory=dict)
    square: Mapping[str, torch.Tensor] = field(default_factory=dict)


def save_state(path: Path, state: TrainingState) -> None:
    """Replace the file at ``path``, in a folder that no other process writes to.

    A process that dies meanwhile leaves the old one. So does a disk that is full: raises
    ``TrainingNotSaved``, also if the folder is gone, as of a job that was deleted.
    """
    tensors = {
        f"{part}:{name}": tensor.cpu().contiguous()
        for part in _PARTS
        for name, tensor in getattr(state, part).items()
    }
    staged = path.with_suffix(".part")
    try:
        save_file(tensors, staged, metadata={_STATE: json.dumps(asdict(state.progress))})
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrainingNotSaved(
            f"cannot save the training state in {path.parent} ({error}): free disk space, then "
            "try again; the training resumes from the last saved step"
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def read_state(path: Path, digest: str) -> TrainingState | None:
    """The state of the training of this digest; None if there is none that can be used."""
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    try:
        with safe_open(path, framework="pt") as opened:
            progress = read_record(Progress, parse_record(opened.metadata()[_STATE]))
            if progress.digest != digest:
                return None
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part, _, of = name.partition(":")
                parts[part][of] = opened.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None  # it is begun again
    return TrainingState(progress, **parts)
