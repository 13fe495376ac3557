"""Processes that tests start handle Ctrl-C as usual, and do not outlive the tests."""

import signal
import subprocess

import psutil
import pytest

from tests.support.process_fixtures import started_by
from tests.support.waiting import wait_until


def test_child_processes_heed_ctrl_c() -> None:
    ran = subprocess.run(["sh", "-c", "kill -INT $$; sleep 1"], check=False)
    assert ran.returncode == -signal.SIGINT


def test_a_process_is_found_when_its_parent_has_gone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = set(psutil.pids())
    subprocess.run(["sh", "-c", "setsid sleep 600 > /dev/null 2>&1 &"], check=True)
    (left,) = wait_until(
        lambda: started_by(request.node.nodeid, tmp_path_factory.getbasetemp(), before),
        "the process is found",
    )
    assert left.ppid() != psutil.Process().pid
    left.kill()
    assert not started_by("another test", tmp_path_factory.getbasetemp(), before)
