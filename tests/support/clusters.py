"""The service on a real Ray, with all that it needs, on this machine alone."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from app.cluster.run import deployed
from app.config import ClusterSettings
from app.server.valkey import embedded_valkey
from pruning.config import child_environment
from pruning.search.ray_scoring import connected
from tests.support.exposition import Scrape
from tests.support.processes import free_port, is_ready
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import LIMIT_S, wait_until

LONG = 200  # tokens: seconds, with so many blocks
NUM_BLOCKS = 48
MODEL = {"model": "tiny", "ignore_eos": True}


class Service:
    """A cluster that answers, as a client sees it."""

    def __init__(
        self, client: httpx2.Client, settings: ClusterSettings, nodes: Cluster | None
    ) -> None:
        self.nodes = nodes  # None for one that is not to be changed
        self.url = str(client.base_url)
        self.settings = settings
        self.client = client

    def generate(self, prompt: str, num_tokens: int, **body: Any) -> httpx2.Response:
        ask = {**MODEL, "prompt": prompt, "max_new_tokens": num_tokens, **body}
        return httpx2.post(f"{self.url}/generate", json=ask, timeout=200)

    def metric(self, name: str, **labels: str) -> Mapping[str, float]:
        """The sum of the series with these labels, by replica."""
        found: dict[str, float] = {}
        for sample in Scrape(self.client.get("/metrics").text).samples(name):
            if labels.items() <= sample.labels.items():
                replica = sample.labels["replica"]
                found[replica] = found.get(replica, 0.0) + sample.value
        return found

    @property
    def pids(self) -> set[int]:
        """Of the processes of all replicas that tell of themselves."""
        return {int(name.rpartition("-")[2]) for name in self.metric("sleb_num_requests_running")}


@contextmanager
def service_on(directory: Path, num_nodes: int, **settings: Any) -> Iterator[Service]:
    """On nodes of one CPU each, if there are several, and then by the command."""
    write_tiny_model(directory / "models" / "tiny", num_blocks=NUM_BLOCKS)
    fields = {"data_dir": directory, "port": free_port(), "replica_cpus": 0.5, "drain_s": 1.0}
    with room_for_ray(), embedded_valkey(directory) as url, ray_of(num_nodes) as nodes:
        asked = ClusterSettings(**{**fields, "redis_url": url, **settings})
        address = f"http://127.0.0.1:{asked.port}"
        running = deployed(asked) if nodes is None else commanded(asked, nodes.address)
        with running, httpx2.Client(base_url=address) as client:
            service = Service(client, asked, nodes)
            wait_until(lambda: is_ready(client), "a replica is ready", 180)
            wait_until(lambda: len(service.pids) == asked.replicas, "all of them are")
            yield service


@contextmanager
def commanded(settings: ClusterSettings, address: str) -> Iterator[None]:
    """``sleb cluster`` on a cluster that is there, to be ended by SIGTERM."""
    given = child_environment(settings)
    command = [sys.executable, "-m", "app", "cluster"]
    with subprocess.Popen(command, env={**given, "RAY_ADDRESS": address}) as process:
        try:
            yield
        finally:
            process.terminate()
            code = process.wait(LIMIT_S)
        assert code == 0


@contextmanager
def ray_of(num_nodes: int) -> Iterator[Cluster | None]:
    if num_nodes == 1:
        with connected(ray):
            yield None
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def room_for_ray() -> Iterator[None]:
    """A directory of its own, or others here would join this cluster; and one with a short name."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", directory)
        for check in ("READY", "HEALTH"):  # Serve replaces a proxy that takes longer to answer
            patch.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", str(LIMIT_S))
        try:
            yield
        finally:
            wait_until(lambda: not processes_in(directory), "all of Ray has ended")


def processes_in(directory: str) -> list[int]:
    """Of Ray: those that were started with this as its directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == directory:
                found += [process.pid] if process.status() != psutil.STATUS_ZOMBIE else []
        except psutil.Error:
            continue
    return found


class Many:
    """The same call from many threads at once, and what it has returned."""

    def __init__(self, calls: list[Any]) -> None:
        self._results: list[Any] = []
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in calls]
        for thread in self._threads:
            thread.start()

    def results(self, timeout_s: float = LIMIT_S) -> list[Any]:
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a call has not returned"
        return self._results

    @property
    def num_returned(self) -> int:
        return len(self._results)

    def _run(self, call: Any) -> None:
        try:
            self._results.append(call())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self._results.append(error)
