"""A server that speaks as much of the Hugging Face hub's protocol as fetching a model needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_test"  # noqa: S105 - of this server alone
_API = re.compile(
    r"/api/models/(?P<id>[^/]+/[^/]+)(?:/(?P<kind>revision|tree)/(?P<revision>[^/?]+))?"
)
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass(frozen=True)
class Repo:
    """The files of a directory, at one commit."""

    files: Path
    commit: str = "c" * 40
    branches: tuple[str, ...] = ("main",)
    needs: str | None = None  # what a client without a token is told: GatedRepo or RepoNotFound


@dataclass
class Hub:
    """What is there, and what was asked for."""

    repos: dict[str, Repo] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    num_requests: int = 0
    is_broken: bool = False
    url: str = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        asked = _API.fullmatch(path) or _FILE.fullmatch(path)
        repo = self.hub.repos.get(asked["id"]) if asked else None
        self.hub.num_requests += 1
        if self.hub.is_broken:
            self._send(500, b"")
        elif asked is None or repo is None:
            self._refuse(401, "RepoNotFound")  # as the hub does for those without a token
        elif repo.needs == "RepoNotFound" and not self._has_token:
            self._refuse(401, "RepoNotFound")
        elif asked["revision"] not in (None, repo.commit, *repo.branches):
            self._refuse(404, "RevisionNotFound")
        elif "name" in asked.groupdict():
            self._file(repo, asked["name"])
        elif asked["kind"] == "tree":
            self._send_json([self._entry(file) for file in sorted(repo.files.iterdir())])
        else:
            siblings = [
                {"rfilename": file.name, "size": file.stat().st_size, "blobId": "b" * 40}
                for file in sorted(repo.files.iterdir())
            ]
            self._send_json({"id": asked["id"], "sha": repo.commit, "siblings": siblings})

    @property
    def _has_token(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "b" * 40}

    def _file(self, repo: Repo, name: str) -> None:
        if repo.needs == "GatedRepo" and not self._has_token:
            self._refuse(401, "GatedRepo")
            return
        if not (repo.files / name).is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = (repo.files / name).read_bytes()
        if self.command == "GET":
            self.hub.fetched.append(name)
        etag = hashlib.sha256(data).hexdigest()
        self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, data: Any) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def use_hub(patch: pytest.MonkeyPatch, url: str) -> None:
    """Set what HF_ENDPOINT sets when a process starts."""
    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
