"""Tests start processes as a terminal would, and end all of them; registered by conftest."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pruning.models.opening import OpeningProcess
from tests.support.waiting import wait_until


def heed_ctrl_c() -> None:
    """Let SIGINT have its default effect in child processes, however pytest was started.

    ``nohup``, or ``&`` in a script, starts pytest with SIGINT ignored, and children inherit that.
    They do not inherit a handler: with one that does nothing, pytest itself goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


heed_ctrl_c()


@pytest.fixture(autouse=True)
def _no_process_left(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail the test that leaves a process behind, and kill what it has left."""
    before = set(psutil.pids())
    yield
    test, directory = request.node.nodeid, tmp_path_factory.getbasetemp()
    try:
        wait_until(lambda: not started_by(test, directory, before), "the end")
    except AssertionError:
        left = started_by(test, directory, before)
        told = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        pytest.fail(f"the test has left processes running: {told}")


def started_by(test: str, directory: Path, before: set[int]) -> list[psutil.Process]:
    """Processes that a test has started since: those of fixtures that outlive it are not its own.

    They are known by the variable in which pytest names the current test, by their working
    directory, as Valkey overwrites its environment, or as children of this process.
    """
    found = []
    for pid in set(psutil.pids()) - before:
        try:
            process = psutil.Process(pid)
            if _is_of(process, test, directory) and not _belongs_to(process, before):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _is_of(process: psutil.Process, test: str, directory: Path) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return False
    if "multiprocessing.resource_tracker" in " ".join(process.cmdline()):
        return False  # Python's own, for as long as this process lives
    return (
        process.ppid() == os.getpid()
        or process.environ().get("PYTEST_CURRENT_TEST", "").startswith(f"{test} (")
        or Path(process.cwd()).is_relative_to(directory)
    )


def _belongs_to(process: psutil.Process, before: set[int]) -> bool:
    """Whether something that was there before has started it, such as a server for all tests."""
    ourselves = psutil.Process()
    outside = {ourselves.pid, *(parent.pid for parent in ourselves.parents())}
    return any(parent.pid in before - outside for parent in process.parents())


@pytest.fixture
def opening_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpeningProcess]:
    """Models are first opened by this process, which ends one that takes 3 s."""
    monkeypatch.setenv("SLEB_SANDBOX", "process")
    process = OpeningProcess()
    monkeypatch.setattr("pruning.models.opening._PROCESS", process)
    monkeypatch.setattr("pruning.models.opening.MAX_CPU_S", 3.0)
    yield process
    process.end()
