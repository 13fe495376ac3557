"""How much ``make demo`` downloads is said before it starts. Nothing is installed here."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tools.downloads import announcement, num_bytes

# resolves everything to the packages of a file, and installs nothing
UV = """#!/bin/sh
case "$*" in *" compile "*) exec cat {lock};; esac
echo installed
"""
LOCK = """\
packages = [
  {{ name = "app", directory = {{ path = "." }} }},
  {{ name = "here", wheels = [{{ url = "file:///wheels/here.whl" }}] }},
  {{ name = "one", sdist = {{ url = "https://a.example/one.tar.gz", size = 9000000 }}, wheels = [
    {{ url = "https://a.example/one-cp311.whl", size = 2000000 }},
    {{ url = "https://a.example/one-any.whl", size = 1000000 }},
  ] }},
  {{ name = "asked", wheels = [{{ url = "{url}/asked.whl" }}] }},
  {{ name = "gone", wheels = [{{ url = "{url}/gone.whl" }}] }},
]
"""
SAID = "Downloading at most 5 MB (5,000,000 bytes) in 2 packages, and 1 of unknown size, as far"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that has one wheel, whose size only a request tells."""
    (tmp_path / "index").mkdir()
    with (tmp_path / "index" / "asked.whl").open("wb") as wheel:
        wheel.truncate(3_000_000)
    handler = partial(Quiet, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def uv(tmp_path: Path, index: str) -> Path:
    lock, program = tmp_path / "lock.toml", tmp_path / "uv"
    lock.write_text(LOCK.format(url=index))
    program.write_text(UV.format(lock=lock))
    program.chmod(0o755)
    return program


def test_the_bytes_are_said_before_the_installation(uv: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tools.install", str(uv), "--editable", ".[demo]"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=True,
    )
    said, installed = ran.stdout.splitlines()[-2:]
    assert said.startswith(SAID)
    assert installed == "installed"


@pytest.mark.parametrize("said", ["exit 1", "echo no TOML", "exec /nowhere"])
def test_nothing_is_said_where_uv_finds_no_solution(tmp_path: Path, said: str) -> None:
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    assert announcement(str(program), [".[demo]"], {"PATH": "/usr/bin:/bin"}) == ""


def test_a_package_of_sources_alone_has_their_size() -> None:
    file = {"url": "https://a.example/one.tar.gz", "size": 7}
    assert num_bytes({"name": "one", "sdist": file}) == 7
    assert num_bytes({"name": "one", "archive": file}) == 7
