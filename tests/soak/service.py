"""Valkey, the API and a worker as processes that can be measured and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil

from app.config import ServeSettings
from pruning.config import child_environment
from tests.support.exposition import Scrape
from tests.support.processes import free_port, is_ready
from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

# every write is synced to disk, so that a killed server loses no accepted job
DURABLE = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
AWAY_S = 2.0
_RECONNECT_S = 3.0  # until all clients have reconnected
_GAUGES = ("sleb_num_requests_running", "sleb_num_requests_waiting", "sleb_kv_cache_usage_perc")


class Service:
    """The processes of one data directory."""

    def __init__(self, data_dir: Path, valkey: ValkeyServer, workers: Workers) -> None:
        self.data_dir = data_dir
        self.valkey = valkey
        self.disturbances: list[str] = []
        self._workers = workers
        self._worker = workers.start()
        self._worker_kills = cycle(["worker", "child"])
        self._valkey_kills = cycle([signal.SIGKILL, signal.SIGTERM])
        self._is_away, self._back_at_s = False, -_RECONNECT_S
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._api = self._start_api()
        self._process = psutil.Process(self._api.pid)

    def _start_api(self) -> "subprocess.Popen[bytes]":
        settings = ServeSettings(
            data_dir=self.data_dir, port=self._port, threads=1, redis_url=self.valkey.url
        )
        command = [sys.executable, "-m", "tests.soak.api_process", str(self.data_dir / "tasks")]
        with (self.data_dir / "api.log").open("wb") as log:
            return subprocess.Popen(
                command, env=child_environment(settings), stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        with httpx2.Client(base_url=self.url) as client:

            def is_up() -> bool:
                assert self._api.poll() is None, (self.data_dir / "api.log").read_text()[-4000:]
                return is_ready(client)

            wait_until(is_up, "the API is ready", 300)

    def stop(self) -> None:
        self._api.terminate()
        self._api.wait(100)

    def kill(self) -> None:
        self._api.kill()
        self._api.wait()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the API."""
        found: int = self._process.memory_info().rss
        return found

    def num_files(self) -> int:
        """Open files of the API, including connections to Redis."""
        found: int = self._process.num_fds()
        return found

    def num_clients(self) -> int:
        """Open connections of clients to the API."""
        found = self._process.net_connections("tcp")
        return sum(connection.status != psutil.CONN_LISTEN for connection in found)

    def tasks(self) -> list[str]:
        """Current tasks of the API's event loop."""
        target = self.data_dir / "tasks"
        target.unlink(missing_ok=True)
        self._api.send_signal(signal.SIGUSR1)
        wait_until(target.exists, "the API writes its tasks")
        return target.read_text().splitlines()

    def check_health(self) -> None:
        """Check the health of the API, whose idle engine verifies its own state."""
        for path in ("/health/live", "/health/ready"):
            answer = httpx2.get(f"{self.url}{path}")
            assert answer.is_success, answer.text

    def taken(self) -> dict[str, float]:
        """The gauges of slots, queue and cache that are not 0."""
        scrape = Scrape(httpx2.get(f"{self.url}/metrics").text)
        values = {
            f"{name}{labels}": scrape.value(name, **labels) or 0.0
            for name in _GAUGES
            for labels in scrape.series(name)
        }
        return {name: value for name, value in values.items() if value}

    def may_lack_store(self, since_s: float) -> bool:
        """Whether Redis was away, or just back, since this time of ``time.monotonic``."""
        return self._is_away or since_s < self._back_at_s + _RECONNECT_S

    def kill_worker(self) -> None:
        """Kill the parent, which ends its child as well, or only the child, in turn."""
        victim = next(self._worker_kills)
        child = self._child()
        if victim == "child" and child is not None:
            os.kill(child, signal.SIGKILL)
        else:
            self._worker.kill()
            self._worker.wait()
            self._worker = self._workers.start()
        self.disturbances.append(f"{victim} killed" + ("" if child else ", idle"))

    def has_child(self) -> bool:
        return self._child() is not None

    def _child(self) -> int | None:
        children = psutil.Process(self._worker.pid).children()
        return children[0].pid if children else None

    def take_store_away(self) -> None:
        number = next(self._valkey_kills)
        self._is_away = True
        self.valkey.process.send_signal(number)
        self.valkey.process.wait()
        self.disturbances.append(f"Redis away for {AWAY_S:g} s after {number.name}")

    def bring_store_back(self) -> None:
        self.valkey.start()
        self.valkey.wait_until_it_answers()
        self._is_away, self._back_at_s = False, time.monotonic()


@contextmanager
def running(data_dir: Path) -> Iterator[Service]:
    """Start all processes and wait until the API is ready. All are stopped at the end."""
    with TemporaryDirectory(prefix="sleb-soak-") as directory:
        valkey = ValkeyServer(Path(directory), *DURABLE)
        valkey.start()
        workers = Workers(data_dir, valkey.url)
        try:
            valkey.wait_until_it_answers()
            service = Service(data_dir, valkey, workers)
            try:
                service.wait_until_ready()
                yield service
            finally:
                service.kill()
        finally:
            workers.kill_all()
            valkey.process.kill()
            valkey.process.wait()
