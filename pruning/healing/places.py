"""Where a healing reads and writes. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from pruning.healing.lock import remove_folder
from pruning.models.names import healed_name

HEALED, CONTROL = "healed", "control"  # the two trainings
ADAPTER_FOLDER = "adapter"  # of a healed checkpoint
ADAPTER_TENSORS = "adapter_model.safetensors"  # as peft names them
ADAPTER_FILE = f"{ADAPTER_FOLDER}/{ADAPTER_TENSORS}"
CONTROL_FOLDER = "control"  # of a healed checkpoint: the adapter of the dense model
STATE_FOLDER = ".healing"  # in the folder of checkpoints


@dataclass(frozen=True)
class HealedPlaces:
    """Where a healing reads and writes."""

    source: Path  # the pruned checkpoint
    target: Path  # of the healed one
    state: Path  # folder of the training, which goes in the end

    def state_of(self, which: str) -> Path:
        """The file of the training of the ``healed`` model or of the ``control``."""
        return self.state / f"{which}.safetensors"

    @property
    def is_begun(self) -> bool:
        return any(self.state_of(which).exists() for which in (HEALED, CONTROL))

    def discard_state(self) -> None:
        """Remove the folder of the training, and the one above it if it was the last there."""
        remove_folder(self.state)


def healed_beside(source: Path) -> HealedPlaces:
    """The places of a healing in the folder of its source, with a hidden one for its state."""
    target = source.with_name(healed_name(source.name))
    return HealedPlaces(source, target, source.parent / STATE_FOLDER / source.name)
