"""A tracking server that speaks the REST calls of MLflow's client that recording a job uses."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

_API = "/api/2.0/mlflow/"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


@dataclass
class Tracking:
    """What was recorded. ``fails_at`` is the number of a request that is answered by ``status``."""

    url: str = ""
    experiments: dict[str, str] = field(default_factory=dict)  # ids by name
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fails_at: int | None = None
    status: int = 400  # which the client does not retry


@contextmanager
def tracking_server() -> Iterator[Tracking]:
    tracking = Tracking()
    handler = type("Handler", (_Handler,), {"tracking": tracking})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        tracking.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tracking
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    tracking: Tracking

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._answer(parts.path, given, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self._answer(self.path, json.loads(body or b"{}"), body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(self.path, {}, body)

    def _answer(self, path: str, given: dict[str, Any], body: bytes) -> None:
        tracking = self.tracking
        tracking.requests.append(path)
        if len(tracking.requests) == tracking.fails_at:
            self._send(tracking.status, {"error_code": "INVALID_STATE", "message": "no"})
        elif path.startswith(_ARTIFACTS):
            tracking.artifacts[path.removeprefix(_ARTIFACTS)] = body
            self._send(200, {})
        else:
            call = getattr(
                self, "_" + path.removeprefix(_API).replace("/", "_").replace("-", "_"), None
            )
            if call is None:
                self._send(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path})
            else:
                call(given)

    def _experiments_get_by_name(self, given: dict[str, Any]) -> None:
        found = self.tracking.experiments.get(given["experiment_name"])
        if found is None:
            self._send(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"})
        else:
            self._send(200, {"experiment": {"experiment_id": found, "name": "x"}})

    def _experiments_create(self, given: dict[str, Any]) -> None:
        self.tracking.experiments[given["name"]] = "1"
        self._send(200, {"experiment_id": "1"})

    def _runs_create(self, given: dict[str, Any]) -> None:
        run_id = uuid4().hex
        info = {
            "run_id": run_id,
            "experiment_id": "1",
            "status": "RUNNING",
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts",
        }
        data = {"tags": given.get("tags", []), "params": [], "metrics": []}
        self.tracking.runs[run_id] = {"info": info, "data": data}
        self._send(200, {"run": self.tracking.runs[run_id]})

    def _runs_get(self, given: dict[str, Any]) -> None:
        self._send(200, {"run": self.tracking.runs[given["run_id"]]})

    def _runs_search(self, given: dict[str, Any]) -> None:
        job = given["filter"].split("'")[1]
        found = [
            run
            for run in self.tracking.runs.values()
            if run["info"]["lifecycle_stage"] == "active"
            and {"key": "sleb.job", "value": job} in run["data"]["tags"]
        ]
        self._send(200, {"runs": found})

    def _runs_delete(self, given: dict[str, Any]) -> None:
        self.tracking.runs[given["run_id"]]["info"]["lifecycle_stage"] = "deleted"
        self._send(200, {})

    def _runs_update(self, given: dict[str, Any]) -> None:
        info = self.tracking.runs[given["run_id"]]["info"]
        info["status"] = given["status"]
        self._send(200, {"run_info": info})

    def _runs_log_batch(self, given: dict[str, Any]) -> None:
        data = self.tracking.runs[given["run_id"]]["data"]
        for kind in ("params", "metrics", "tags"):
            data[kind] += given.get(kind, [])
        self._send(200, {})

    def _send(self, status: int, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
