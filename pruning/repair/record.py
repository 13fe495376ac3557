"""What a manifest records of repairs: methods, gains and files. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

FOLDER = "repair"


class Method(StrEnum):
    NONE = "none"
    SCALE = "scale"
    RIDGE = "ridge"


def repair_file(num_removed: int) -> str:
    """The path within the checkpoint, for the model after so many removals."""
    return f"{FOLDER}/depth-{num_removed}.safetensors"


@dataclass(frozen=True)
class Gain:
    """How much a repair lowers the loss of a domain, in nats per token, window by window.

    ``standard_error`` is that of the mean of paired differences; 0 for a single window.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True)
class DepthRepair:
    """The repair of the model after ``num_removed`` removals, as the manifest records it.

    ``gains`` are those of each method that was tried, over no repair, by domain of the selection
    windows; a method without finite losses has none. ``num_bytes`` are those of the chosen
    method's own tensors.
    """

    num_removed: int
    method: Method
    num_bytes: int
    gains: Mapping[Method, Mapping[str, Gain]]
