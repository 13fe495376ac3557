"""A keeper ends what it has started, however the service or the command ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.vllm import keeper
from tests.support.processes import is_alive
from tests.support.waiting import wait_until

Kept = tuple["subprocess.Popen[str]", list[int]]

# has a child, as vLLM has its engine; prints both ids
PARENT = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "socket"
    path.mkdir()
    return path


@pytest.fixture
def kept(folder: Path) -> Iterator[Kept]:
    """A keeper, and the ids of the two processes that it keeps."""
    with keeping("-m", keeper.__name__, str(folder), sys.executable, "-c", PARENT) as kept:
        yield kept


@contextmanager
def keeping(*arguments: str) -> Iterator[Kept]:
    """Python with these arguments, by which it keeps the two processes of ``PARENT``."""
    with start(*arguments) as process:
        assert process.stdout is not None
        pids = [int(text) for text in process.stdout.readline().split()]
        yield process, pids
        process.kill()
        for pid in filter(is_alive, pids):
            psutil.Process(pid).kill()


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def none_is_left(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), "no process is left")


def test_all_ends_when_the_service_is_gone(kept: Kept, folder: Path) -> None:
    process, pids = kept
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(100) == 128 + signal.SIGTERM
    none_is_left(pids)
    assert not folder.exists()


def test_the_service_goes_first(kept: Kept) -> None:
    process, pids = kept
    least = 19  # of Linux
    niceness = min(least, psutil.Process(process.pid).nice() + keeper.NICENESS)
    assert [psutil.Process(pid).nice() for pid in pids] == [niceness, niceness]


def test_what_the_command_started_ends_with_it(kept: Kept, folder: Path) -> None:
    process, pids = kept
    psutil.Process(pids[0]).kill()
    assert process.wait(100) == 128 + signal.SIGKILL
    none_is_left(pids)
    assert not folder.exists()


def test_sigterm_ends_all(kept: Kept) -> None:
    process, pids = kept
    process.terminate()
    assert process.wait(100) == 128 + signal.SIGTERM
    none_is_left(pids)


def test_sigterm_while_the_command_starts_ends_all(folder: Path) -> None:
    code = f"""
import os, signal, subprocess, sys
from app.vllm import keeper
class Interrupted(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options, stdout=subprocess.PIPE, text=True)
        print(self.stdout.readline(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Interrupted
sys.exit(keeper.main({str(folder)!r}, [sys.executable, "-c", {PARENT!r}]))
"""
    with keeping("-c", code) as (process, pids):
        assert process.wait(100) == 128 + signal.SIGTERM
        none_is_left(pids)
        assert not folder.exists()


def test_the_command_ends_with_a_keeper_that_was_killed(
    kept: Kept,
) -> None:
    process, pids = kept
    process.kill()
    process.wait(100)
    none_is_left(pids[:1])


def test_the_service_ends_what_a_killed_keeper_left(kept: Kept, folder: Path) -> None:
    process, pids = kept
    wait_until(lambda: any(folder.glob("group")) and (folder / "group").read_text(), "it is named")
    process.kill()
    process.wait(100)
    assert is_alive(pids[1])
    keeper.end_orphans(folder)
    none_is_left(pids)
    assert not folder.exists()
    keeper.end_orphans(folder)


def test_a_command_that_ignores_sigterm_is_killed(folder: Path) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    hasty = "from app.vllm import keeper; keeper.GRACE_S = 0.2; import sys; sys.exit("
    hasty += f"keeper.main({str(folder)!r}, [sys.executable, '-c', {code!r}]))"
    with subprocess.Popen(
        [sys.executable, "-c", hasty], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"1\n"
        process.stdin.close()
        assert process.wait(100) == 128 + signal.SIGKILL


def test_the_exit_code_is_that_of_the_command(folder: Path) -> None:
    arguments = (
        "-m",
        keeper.__name__,
        str(folder),
        sys.executable,
        "-c",
        "import sys; sys.exit(7)",
    )
    with start(*arguments) as process:
        assert process.wait(100) == 7
