"""A sign on the terminal that moves while a command imports what it runs: torch takes seconds.

Commands import lazily, after their checks, and say nothing meanwhile. A finder in front of all
others notices the import of an own module or of a large library, and a thread draws until it ends.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from itertools import cycle
from types import ModuleType
from typing import IO

from rich.console import Console

_WATCHED = ("app.", "pruning.", "matplotlib", "transformers", "torch")
_SLOW = "torch"  # once it is there, other imports are quick
_DELAY_S = 0.3  # quick commands show nothing
_FRAME_S = 0.1
# Each frame leaves the cursor in front of it, so what another process writes takes its place.
_FRAMES = tuple(f"{sign} starting\r" for sign in "|/-\\")
_ERASE = "\x1b[2K"


def show_imports(console: Console) -> None:
    """Draw while modules are imported, if the console is a terminal in the foreground."""
    if _is_watched(console):
        sys.meta_path.insert(0, _Imports(console.file))


class _Imports(MetaPathFinder):
    """Finds modules as usual, and has their execution watched; the imports inside are not."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname.startswith(_WATCHED) else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def watched(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            with _spinning(self._stream):
                execute(module)
            if _SLOW not in sys.modules:
                sys.meta_path.insert(0, self)

        spec.loader.exec_module = watched  # type: ignore[method-assign]  # of this spec alone
        return spec


@contextmanager
def _spinning(stream: IO[str]) -> Iterator[None]:
    is_done = threading.Event()
    thread = threading.Thread(target=_draw, args=(stream, is_done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _draw(stream: IO[str], is_done: threading.Event) -> None:
    if is_done.wait(_DELAY_S):
        return
    for frame in cycle(_FRAMES):
        stream.write(frame)
        stream.flush()
        if is_done.wait(_FRAME_S):
            break
    stream.write(_ERASE)
    stream.flush()


def _is_watched(console: Console) -> bool:
    """Whether it is a terminal that understands the signs, and no shell is writing to it."""
    if not console.file.isatty() or console.is_dumb_terminal:
        return False
    try:
        return os.tcgetpgrp(console.file.fileno()) == os.getpgrp()
    except OSError:  # the terminal of another session, as for the children of `sleb up`
        return True
