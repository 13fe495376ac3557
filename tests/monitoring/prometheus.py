"""A real Prometheus with the shipped configuration that scrapes this machine every second."""

import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.support.debian import tool
from tests.support.processes import free_port
from tests.support.waiting import wait_until

DOCKER = Path(__file__).parents[2] / "docker"
SHIPPED = DOCKER / "prometheus"


@dataclass(frozen=True)
class Sample:
    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A client of the HTTP API of Prometheus."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def query(self, expr: str) -> list[Sample]:
        """The current instant vector. Raises if Prometheus refuses the query."""
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        if answer["data"]["resultType"] == "scalar":
            return [Sample({}, float(answer["data"]["result"][1]))]
        return [
            Sample(found["metric"], float(found["value"][1])) for found in answer["data"]["result"]
        ]

    def has_data(self, expr: str, over_s: float) -> bool:
        """Whether the query had a value in any of the last ``over_s`` seconds."""
        now_s = time.time()
        span = {"start": str(now_s - over_s), "end": str(now_s), "step": "1"}
        answer = self._client.get("/api/v1/query_range", params={"query": expr, **span}).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        numbers = (float(at[1]) for found in answer["data"]["result"] for at in found["values"])
        return any(not math.isnan(number) for number in numbers)

    def value(self, expr: str) -> float:
        """The value of a query with one result."""
        [sample] = self.query(expr)
        return sample.value

    def names(self) -> set[str]:
        """The metrics that were scraped or recorded."""
        return set(self._client.get("/api/v1/label/__name__/values").json()["data"])

    def rules(self) -> list[dict[str, Any]]:
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def exemplars(self, expr: str) -> list[Mapping[str, str]]:
        """The labels of all scraped exemplars."""
        given = {"query": expr, "start": "0", "end": "99999999999"}
        answer = self._client.get("/api/v1/query_exemplars", params=given).json()
        return [exemplar["labels"] for series in answer["data"] for exemplar in series["exemplars"]]


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped rules and these targets, ``HOST:PORT`` by job name."""
    binary, port = tool("prometheus"), free_port()
    directory.mkdir()
    (directory / "prometheus.yml").write_text(yaml.safe_dump(_fast(targets)), encoding="utf-8")
    command = [
        binary,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        try:
            found = Prometheus(client)
            wait_until(found.is_ready, "Prometheus is ready")
            yield found
        finally:
            process.kill()


def _fast(targets: Mapping[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    second = ("scrape_interval", "scrape_timeout", "evaluation_interval")
    config["global"] |= dict.fromkeys(second, "1s")
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    shipped = {job["job_name"] for job in config["scrape_configs"]}
    assert targets.keys() <= shipped, f"{SHIPPED} scrapes {shipped}"
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [address]}]}
        for job, address in targets.items()
    ]
    return config


def with_values(expr: str, values: Mapping[str, str]) -> str:
    """The query with the values of variables, as Grafana sends it."""
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    assert "$" not in expr, f"a variable is not known here: {expr}"
    return expr


def alerts_and_records() -> Sequence[Mapping[str, str]]:
    """All shipped rules."""
    files = (yaml.safe_load(path.read_text()) for path in sorted((SHIPPED / "rules").iterdir()))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]
