"""What the host does that holds up a GPU: waits, and copies between the two memories."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_HERE = str(Path(__file__).parent)
_OTHERS = sys.prefix


@dataclass(frozen=True)
class Event:
    kind: str  # "wait", "upload" or "download"
    op: str  # of torch, or the direction of the copy that is waited for
    num_bytes: int
    where: str  # file:line of this project that caused it
    is_capturing: bool


@dataclass
class Log:
    """The events since the log was cleared, in order."""

    events: list[Event] = field(default_factory=list)

    def add(self, kind: str, op: str, num_bytes: int, *, is_capturing: bool) -> None:
        self.events.append(Event(kind, op, num_bytes, _caller(), is_capturing))

    def clear(self) -> None:
        self.events.clear()

    def count(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.events)

    def by_place(self, kind: str) -> Counter[str]:
        """How often each line of the project caused it."""
        return Counter(event.where for event in self.events if event.kind == kind)


def _caller() -> str:
    """The innermost line of this project, outside of the simulation."""
    frame = sys._getframe(1)
    while (found := frame.f_back) is not None:
        frame = found
        path = frame.f_code.co_filename
        if path.startswith(str(_ROOT)) and not path.startswith((_HERE, _OTHERS)):
            return f"{Path(path).relative_to(_ROOT)}:{frame.f_lineno}"
    return "a thread of torch"
