"""The folder of texts that jobs may name: no file outside of it is read for a client."""

from dataclasses import dataclass
from pathlib import Path

from pruning.spec.prune import InvalidSpec

_SHOWN = 256  # characters of a name in a message


@dataclass(frozen=True)
class TextsFolder:
    path: Path
    max_bytes: int  # of a file in it: a worker reads all of it into memory

    def file(self, name: str) -> Path:
        """Where the text of this name is, links resolved.

        Raises ``InvalidSpec`` for one that is not in the folder, or larger than is allowed.
        """
        if "\0" in name:
            raise InvalidSpec("calibration.path", "the path contains a null character")
        path = self.path / name
        num_bytes = _num_bytes(path)
        if num_bytes is None or not path.resolve().is_relative_to(self.path.resolve()):
            raise InvalidSpec(
                "calibration.path",
                f"no file {name[:_SHOWN]!r} in the texts folder of the service: put it there first",
            )
        if num_bytes > self.max_bytes:
            raise InvalidSpec(
                "calibration.path",
                f"{name[:_SHOWN]!r} has {num_bytes} bytes, where SLEB_MAX_TEXT_BYTES allows "
                f"{self.max_bytes}: a part of it is enough for calibration",
            )
        return path.resolve()


def _num_bytes(path: Path) -> int | None:
    """None for what is no file, whatever else it is."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # its name is too long, or it may not be looked at
        return None
