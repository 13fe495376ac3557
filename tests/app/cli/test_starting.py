"""What a terminal shows while a command imports its modules, and that a pipe gets nothing."""

import os
import pty
import sys

import pytest

from app.terminal import starting


def test_a_terminal_shows_that_a_command_starts_until_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_end, own_end = pty.openpty()
    with os.fdopen(own_end, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with starting():
            assert os.read(other_end, 1000) == b"starting\r"
        assert os.read(other_end, 1000) == b"        \r"
    os.close(other_end)


def test_a_pipe_gets_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with starting():
        pass
    assert capfd.readouterr() == ("", "")
