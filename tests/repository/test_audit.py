"""`make audit` against a local service of advisories."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[2]
ADVISORY = {
    "schema_version": "1.6.0",
    "id": "TEST-1",
    "modified": "2026-01-01T00:00:00Z",
    "summary": "made up",
    "affected": [{"package": {"name": "filelock", "ecosystem": "PyPI"}, "ranges": []}],
}


class Advisories(BaseHTTPRequestHandler):
    """A server of the OSV protocol. Only the packages in ``vulnerable`` have an advisory."""

    vulnerable: frozenset[str] = frozenset()
    asked: set[str]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.asked.add(name)
        content = json.dumps({"vulns": [ADVISORY]} if name in self.vulnerable else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Log nothing."""


@contextmanager
def advisories(*vulnerable: str) -> Iterator[tuple[str, set[str]]]:
    """Run the service. Yields its URL and the set of names that were queried."""
    members: dict[str, Any] = {"vulnerable": frozenset(vulnerable), "asked": set()}
    handler = type("Handler", (Advisories,), members)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", members["asked"]
        finally:
            server.shutdown()
            thread.join()


def make_audit(
    url: str, build: Path, *done: str, bin_dir: str = f"{sys.prefix}/bin"
) -> "subprocess.CompletedProcess[str]":
    """Run `make audit` in this folder, without `setup` and the targets that are ``done``."""
    service = f"AUDIT=--vulnerability-service osv --osv-url {url}"
    olds = [word for name in ("setup", *done) for word in ("--old-file", name)]
    command = ["make", *olds, "audit", service, f"BUILD={build}", f"BIN={bin_dir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def required() -> set[NormalizedName]:
    """The dependencies in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}


@pytest.mark.slow
def test_everything_that_is_installed_is_asked_about_and_listed(tmp_path: Path) -> None:
    with advisories() as (url, asked):
        ran = make_audit(url, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "No known vulnerabilities found" in ran.stderr
    assert required() <= asked
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "sleb-serve")
    listed = {canonicalize_name(component["name"]): component for component in bill["components"]}
    assert required() <= listed.keys()
    assert all(listed[name]["version"] and listed[name]["purl"] for name in required())


@pytest.mark.slow
def test_what_is_vulnerable_fails_it(tmp_path: Path) -> None:
    with advisories("filelock") as (url, _):
        ran = make_audit(url, tmp_path, "sbom")
    assert ran.returncode != 0
    assert "TEST-1" in ran.stdout
    assert "make audit: the packages listed above" in ran.stderr


@pytest.mark.slow
def test_a_service_that_cannot_be_reached_fails_it(tmp_path: Path) -> None:
    ran = make_audit("http://127.0.0.1:1/", tmp_path, "sbom")
    assert ran.returncode != 0
    assert "make audit: the packages listed above" in ran.stderr
    assert "No known vulnerabilities found" not in ran.stderr


def test_an_empty_list_of_packages_fails_it(tmp_path: Path) -> None:
    (fake := tmp_path / "python").write_text("#!/bin/sh\n", encoding="utf-8")
    fake.chmod(0o755)
    ran = make_audit("http://127.0.0.1:1/", tmp_path, "sbom", bin_dir=str(tmp_path))
    assert ran.returncode != 0
    assert "make audit: pip lists no packages" in ran.stderr


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_AUDIT_CACHE_DIR", str(tmp_path))
