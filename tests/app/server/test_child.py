"""A child of ``sleb up`` is started again after its death, unless it cannot start at all."""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.server.child import Child, ChildEnded, Command
from tests.support.waiting import wait_until

RUNS = "import sys, time; open(sys.argv[1] + '/up', 'w').close(); time.sleep(1000)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.child.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("app.server.child.MAX_PAUSE_S", 0.04)


class Watched:
    """A child whose code touches the file ``up`` when it is up."""

    def __init__(self, code: str, directory: Path) -> None:
        self.dead: list[int] = []
        self.file = directory / "up"
        line = (sys.executable, "-S", "-c", code, str(directory))
        self.child = Child(Command("worker", line, {}, 10, self._is_up, self.dead.append))

    def _is_up(self, pid: int) -> bool:
        assert pid == self.child.pid
        return self.file.exists()

    def look_until_up(self) -> None:
        def is_up() -> bool:
            self.child.look()
            return self.file.exists()

        wait_until(is_up, "the child is up")
        self.child.look()  # which sees it

    def look_until_dead(self, number: int) -> None:
        def is_dead() -> bool:
            self.child.look()
            return len(self.dead) == number

        wait_until(is_dead, f"{number} deaths")


@contextmanager
def watched(code: str, directory: Path) -> Iterator[Watched]:
    found = Watched(code, directory)
    try:
        yield found
    finally:
        found.child.stop()


def test_a_child_that_is_killed_is_started_again_after_growing_pauses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(RUNS, tmp_path) as it, caplog.at_level(logging.ERROR, "app.server.child"):
        for number in range(1, 5):
            it.look_until_up()
            it.file.unlink()
            pid = it.child.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            it.look_until_dead(number)
            assert it.dead[-1] == pid
        it.look_until_up()
    assert len(set(it.dead)) == 4
    begin = "the worker has died (signal 9, Killed) and is started again in"
    pauses = ("0.01", "0.02", "0.04", "0.04")
    assert caplog.messages == [f"{begin} {pause} s" for pause in pauses]


def test_a_child_that_was_up_is_started_again_whatever_ends_it(tmp_path: Path) -> None:
    ends = RUNS.replace("time.sleep(1000)", "time.sleep(0.5); sys.exit(3)")
    with watched(ends, tmp_path) as it:
        it.look_until_up()
        it.look_until_dead(2)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        pytest.param("raise SystemExit(2)", "exit code 2", id="an error of its own"),
        pytest.param("import os; os.abort()", "signal 6, Aborted", id="a crash"),
    ],
)
def test_a_child_that_cannot_start_ends_the_command(tmp_path: Path, code: str, end: str) -> None:
    message = f"the worker cannot start ({end}): see its output above"
    with watched(code, tmp_path) as it:
        with pytest.raises(ChildEnded, match=re.escape(message)):
            it.look_until_dead(1)
        assert it.dead == []


def test_a_child_that_is_killed_before_it_is_up_is_tried_again(tmp_path: Path) -> None:
    with watched("import os; os.kill(os.getpid(), 9)", tmp_path) as it:
        it.look_until_dead(3)
