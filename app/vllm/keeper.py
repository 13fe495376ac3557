"""``python -m app.vllm.keeper FOLDER COMMAND...``: a process that ends a command with the service.

The service holds the other end of its standard input, which closes however the service ends. vLLM
has processes of its own, so the whole process group is ended, and FOLDER is removed.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from pruning.process import deferred_signal, end_with_parent, lower_priority

GRACE_S = 10.0  # from SIGTERM to SIGKILL
NICENESS = 5  # of vLLM: a service that passes requests on needs little time, but at once
_POLL_S = 0.1
_GROUP_FILE = "group"  # in FOLDER: the id of the process group


def main(folder: str, command: list[str]) -> int:
    """Run the command until it ends, or until standard input does. Return its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signal(signal.SIGTERM) as is_asked_to_end:
        child = subprocess.Popen(  # noqa: S603 - the command of the service
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(_become_child, os.getpid()),  # noqa: PLW1509 - no threads here
        )
        try:
            Path(folder).mkdir(exist_ok=True)
            Path(folder, _GROUP_FILE).write_text(str(child.pid))
            while child.poll() is None and not (is_asked_to_end() or _is_service_gone()):
                pass
        finally:
            _end_group(child)
            shutil.rmtree(folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _become_child(keeper_pid: int) -> None:
    end_with_parent(keeper_pid, signal.SIGTERM)
    lower_priority(NICENESS)


def end_orphans(folder: Path) -> None:
    """End what a keeper that was killed has left: one that ended by itself removed the folder."""
    with suppress(OSError, ValueError):  # no file, or no process is left
        os.killpg(int((folder / _GROUP_FILE).read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _is_service_gone() -> bool:
    """Wait a moment for the end of standard input, on which nothing is sent."""
    readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
    return bool(readable)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """End the command, if it still runs, and what it has started."""
    if child.poll() is None:
        _signal_group(child, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    _signal_group(child, signal.SIGKILL)
    child.wait()


def _signal_group(child: "subprocess.Popen[bytes]", signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # no process is left in it
        os.killpg(child.pid, signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
