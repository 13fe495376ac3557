"""The names of a repair: its method, and its file in a checkpoint. Imports no torch."""

from enum import StrEnum

FOLDER = "repair"


class Method(StrEnum):
    NONE = "none"
    SCALE = "scale"
    RIDGE = "ridge"


def repair_file(num_removed: int) -> str:
    """The path within the checkpoint, for the model after so many removals."""
    return f"{FOLDER}/depth-{num_removed}.safetensors"
