"""Workers as processes that a test can start, watch and kill; registered by conftest."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from pruning.config import WorkerSettings, child_environment
from tests.support.waiting import wait_until

LEASE_S = 3


class Workers:
    """Starts workers over one data directory, and sees what their children do."""

    def __init__(self, data_dir: Path, redis_url: str) -> None:
        self.data_dir = data_dir
        self.cancel_s = 30.0
        self.checkpoint_store: str | None = None
        self.device = "auto"
        self.module = "tests.support.worker_process"
        self._url = redis_url
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, metrics_port: int = 0) -> "subprocess.Popen[bytes]":
        settings = WorkerSettings(
            data_dir=self.data_dir,
            threads=1,
            device=self.device,
            cancel_s=self.cancel_s,
            checkpoint_store=self.checkpoint_store,
            worker_metrics_port=metrics_port,
        )
        command = [sys.executable, "-m", self.module, self._url, str(LEASE_S)]
        with (self.data_dir / f"worker-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=child_environment(settings), stdout=log, stderr=log
            )
        self._started.append(process)
        return process

    def children(self) -> list[int]:
        """The processes that ran ``hold``, in order."""
        pids = self.data_dir / "pids"
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    def wait_for_children(self, number: int) -> list[int]:
        def are_there() -> bool:
            if len(self.children()) >= number:
                return True
            is_any_left = any(worker.poll() is None for worker in self._started)
            assert is_any_left, f"all workers have ended:\n{self.log()}"
            return False

        wait_until(are_there, f"{number} runs of the job")
        return self.children()

    def log(self) -> str:
        """What all workers and their children have logged so far, the first worker's first."""
        logs = sorted(self.data_dir.glob("worker-*.log"))
        return "".join(log.read_text() for log in logs)

    def release(self) -> None:
        (self.data_dir / "release").touch()

    def kill_all(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in self.children()), "children dead")


@pytest.fixture
def workers(tmp_path: Path, redis_url: str, redis_client: redis.Redis) -> Iterator[Workers]:  # noqa: ARG001 - empty at first
    started = Workers(tmp_path, redis_url)
    yield started
    started.kill_all()
    print(started.log())  # noqa: T201 - pytest shows it where the test has failed


def is_alive(pid: int) -> bool:
    """A zombie, which only waits to be reaped, is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
