"""A hub whose repositories can be written. huggingface_hub lists, reads and commits, and sends
large files by Git LFS, or by Xet, as the real hub takes them, if a test turns that on.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_test"  # noqa: S105 - of this server alone
LARGE_BYTES = 500  # from there on, a file is sent by Git LFS
_CHUNK_HEADER_BYTES = 8  # of Xet
_number = count()


@dataclass
class WritableHub:
    """The files of each repository by path, and the large files that were sent, by digest."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    num_uploads: int = 0  # of large files
    num_commits: int = 0
    private: set[str] = field(default_factory=set)  # ids of those created as private ones
    xet_dir: Path | None = None  # where Xet stores what it is sent; None: this hub has none
    status: int | None = None  # of every answer, if it is not to be the right one


@contextmanager
def writable_hub() -> Iterator[WritableHub]:
    hub = WritableHub()
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


@pytest.fixture(scope="session")
def hub_with_repositories() -> Iterator[WritableHub]:
    with writable_hub() as hub:
        yield hub


@pytest.fixture
def hub_repository(
    hub_with_repositories: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The id of an empty repository."""
    hub = hub_with_repositories
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repo_id = f"org/store-{next(_number)}"
    hub.repositories[repo_id] = {}
    yield repo_id
    hub.status = hub.xet_dir = None


class _Handler(BaseHTTPRequestHandler):
    hub: WritableHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if "content-length" in self.headers:
            return self.rfile.read(int(self.headers["content-length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, body: bytes) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.hub.status is not None:
            self._send(self.hub.status, b"{}")
        elif parts[0] == "large":
            self.hub.large[parts[1]] = body
            self.hub.num_uploads += 1
            self._send(200, b"")
        elif parts[:2] == ["api", "repos"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._send_json({})
        elif parts[0] == "api":
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._batch(json.loads(body))

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        is_new = repo_id not in self.hub.repositories
        if is_new and asked.get("visibility") == "private":
            self.hub.private.add(repo_id)
        self.hub.repositories.setdefault(repo_id, {})
        self._send_json({"url": f"{self.hub.url}/{repo_id}"}, 200 if is_new else 409)

    def _api(self, repo_id: str, rest: list[str], body: bytes) -> None:
        files = self.hub.repositories.get(repo_id)
        if files is None:
            self._refuse(401, "RepoNotFound")
        elif rest[:1] == ["xet-write-token"]:
            self._xet_token()
        elif rest[:1] == ["tree"]:
            self._tree(files, "/".join(rest[2:]))
        elif rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            self._send_json({"files": [_mode(file) for file in asked]})
        elif rest[:1] == ["commit"]:
            self._commit(files, [json.loads(line) for line in body.splitlines() if line])
        else:
            self._send_json({"id": repo_id, "sha": "c" * 40, "siblings": []})

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
            for path, content in sorted(files.items())
            if path.rpartition("/")[0] == folder
        ]
        is_there = bool(entries) or not folder
        self._send_json(entries) if is_there else self._refuse(404, "EntryNotFound")

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        self.hub.num_commits += 1
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self._large(value["oid"], value["size"])
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                for path in [path for path in files if path.startswith(folder)]:
                    del files[path]
        self._send_json({"commitUrl": f"{self.hub.url}/org/x/commit/1", "commitOid": "c" * 40})

    def _xet_token(self) -> None:
        """hf_xet itself is the server of a URL with this scheme."""
        if self.hub.xet_dir is None:
            self._refuse(404, "EntryNotFound")
        else:
            url, exp = f"local://{self.hub.xet_dir}", int(time.time()) + 3600
            self._send_json({"accessToken": "t", "exp": exp, "casUrl": url})

    def _large(self, digest: str, size: int) -> bytes:
        """A file that was sent by Git LFS; or by Xet, if it is one chunk that is not compressed."""
        if self.hub.xet_dir is not None:
            for xorb in (self.hub.xet_dir / "xet/xorbs/xorbs").iterdir():
                chunk = xorb.read_bytes()[_CHUNK_HEADER_BYTES:][:size]
                if hashlib.sha256(chunk).hexdigest() == digest:
                    return chunk
        return self.hub.large[digest]

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            upload = {"href": f"{self.hub.url}/large/{each['oid']}"}
            actions = {} if each["oid"] in self.hub.large else {"actions": {"upload": upload}}
            objects.append({**each, **actions})
        self._send_json({"transfer": "basic", "objects": objects})

    def _file(self, repo_id: str, path: str) -> None:
        files = self.hub.repositories.get(repo_id)
        if files is None:
            self._refuse(401, "RepoNotFound")
        elif path not in files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(200, files[path])

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", code)

    def _send_json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode())

    def _send(self, status: int, data: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["size"] >= LARGE_BYTES else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
