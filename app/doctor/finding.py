"""What one look of the doctor has found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # works, but somebody may want to know
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """``advice`` is empty only where nothing is to be done."""

    check: str
    level: Level
    said: str
    advice: str = ""


def fine(check: str, said: str) -> Finding:
    return Finding(check, Level.OK, said)


def note(check: str, said: str, advice: str) -> Finding:
    return Finding(check, Level.NOTE, said, advice)


def wrong(check: str, said: str, advice: str) -> Finding:
    return Finding(check, Level.WRONG, said, advice)


def size(num_bytes: float) -> str:
    """In GB, as disks and models are sold."""
    return f"{num_bytes / 1e9:.1f} GB"
