"""What moves on a terminal while a command imports its modules, and that a pipe gets nothing."""

import importlib
import io
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

import app
from app.cli.main import main
from app.cli.spinner import show_imports
from tests.support.waiting import wait_until

SLOW = f"import sys; sys.modules[{__name__!r}].wait_for_frames()"
written: list[bytes] = []  # on the terminal, in front of the end of the import
terminals: list[int] = []


def wait_for_frames() -> None:
    """Run by the imported module: it takes until three frames were drawn."""
    while sum(map(len, written)) < 3 * len("| starting\r"):
        written.append(os.read(terminals[-1], 1000))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    other_end, own_end = pty.openpty()
    written.clear()
    terminals.append(other_end)
    with os.fdopen(own_end, "w") as stream:
        yield stream
    os.close(terminals.pop())


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The file of the module ``app.imported``."""
    monkeypatch.setattr(app, "__path__", [*app.__path__, str(tmp_path)])
    yield tmp_path / "imported.py"
    sys.modules.pop("app.imported", None)


@pytest.mark.parametrize("name", ["app.imported", "matplotlib_imported"])
def test_a_slow_import_is_seen_and_its_sign_is_erased(
    name: str, terminal: TextIO, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(module.parent)
    written_to = module.with_name(f"{name.removeprefix('app.')}.py")
    written_to.write_text(SLOW)
    show_imports(Console(file=terminal))
    importlib.import_module(name)
    sys.modules.pop(name)
    frames = [frame.strip() for frame in b"".join(written).split(b"\r") if frame.strip()]
    assert frames[:3] == [b"| starting", b"/ starting", b"- starting"]
    wait_until(lambda: os.read(terminals[-1], 1000).endswith(b"\x1b[2K"), "it is erased")


def test_a_quick_import_shows_nothing_and_its_error_is_raised(
    terminal: TextIO, module: Path
) -> None:
    module.write_text("raise KeyError('mine')")
    show_imports(Console(file=terminal))
    with pytest.raises(KeyError, match="mine"):
        importlib.import_module("app.imported")
    os.set_blocking(terminals[-1], False)
    with pytest.raises(BlockingIOError):
        os.read(terminals[-1], 1000)


def test_no_import_is_watched_behind_a_pipe_in_the_background_or_on_a_dumb_terminal(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sys.meta_path.copy()
    show_imports(Console(file=io.StringIO()))
    show_imports(Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(os, "tcgetpgrp", lambda _file: os.getpgrp() + 1)
    show_imports(Console(file=terminal))
    monkeypatch.undo()
    monkeypatch.setenv("TERM", "dumb")
    show_imports(Console(file=terminal))
    assert sys.meta_path == before


def test_every_command_is_watched(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(sys.meta_path)
    monkeypatch.setattr(sys, "argv", ["sleb", "--version"])
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit):
        main()
    assert len(sys.meta_path) == before + 1
