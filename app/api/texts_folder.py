"""The folder of calibration texts that jobs may name, and what is checked of a text."""

from dataclasses import dataclass
from pathlib import Path

from pruning.plural import counted
from pruning.spec import InvalidSpec
from pruning.spec.calibration import Calibration, CalibrationMix

_MAX_SHOWN_CHARS = 256  # of a file name in a message


@dataclass(frozen=True)
class TextsFolder:
    """The folder of calibration texts that jobs may name. Clients can read no file outside it."""

    path: Path
    max_bytes: int  # per file: a worker reads all of it into memory

    def file(self, name: str) -> Path:
        """Return the path of the text with symbolic links resolved.

        Raises ``InvalidSpec`` for a file outside the folder or larger than ``max_bytes``.
        """
        if "\0" in name:
            raise InvalidSpec("calibration.path", "the path contains a null character")
        path = self.path / name
        num_bytes = _num_bytes(path)
        if num_bytes is None or not path.resolve().is_relative_to(self.path.resolve()):
            raise InvalidSpec(
                "calibration.path",
                f"no file {name[:_MAX_SHOWN_CHARS]!r} in the texts folder of the service: put it "
                "there first",
            )
        if num_bytes > self.max_bytes:
            raise InvalidSpec(
                "calibration.path",
                f"{name[:_MAX_SHOWN_CHARS]!r} has {num_bytes} bytes, where SLEB_MAX_TEXT_BYTES "
                f"allows {self.max_bytes}: a part of it is enough for calibration",
            )
        return path.resolve()


def check_lengths(calibration: Calibration) -> None:
    """Raise ``InvalidSpec`` for a file that is too short whatever the tokenizer makes of it."""
    for at, source in enumerate(calibration.parts):
        if source.path is None:
            continue
        num_bytes = _num_bytes(Path(source.path)) or 0
        if num_bytes < source.least_tokens:  # a token is of one byte at least
            param = (
                f"calibration.{at}" if isinstance(calibration, CalibrationMix) else "calibration"
            )
            raise InvalidSpec(
                f"{param}.path",
                f"{Path(source.path).name[:_MAX_SHOWN_CHARS]!r} has {counted(num_bytes, 'byte')}, "
                f"which gives no {source.least_tokens} tokens: add text, or ask for fewer samples "
                "or a smaller seqlen",
            )


def _num_bytes(path: Path) -> int | None:
    """Return the size of a regular file, and None for anything else."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # the name is too long, or the folder is not readable
        return None
