"""Where a healing reads and writes. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

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
    state: Path  # of the training: the beginning of the names of its files, which go in the end

    def state_of(self, which: str) -> Path:
        """The file of the training of the ``healed`` model or of the ``control``."""
        return self.state.with_name(f"{self.state.name}.{which}.safetensors")

    @property
    def is_begun(self) -> bool:
        return any(self.state_of(which).exists() for which in (HEALED, CONTROL))

    def discard_state(self) -> None:
        """Remove the files of the training, and their folder if they were the last ones."""
        for which in (HEALED, CONTROL):
            self.state_of(which).unlink(missing_ok=True)
        if self.state.parent.is_dir() and not any(self.state.parent.iterdir()):
            self.state.parent.rmdir()


def healed_beside(source: Path) -> HealedPlaces:
    """The places of a healing in the folder of its source, with a hidden one for its state."""
    target = source.with_name(healed_name(source.name))
    return HealedPlaces(source, target, source.parent / STATE_FOLDER / source.name)
