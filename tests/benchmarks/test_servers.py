"""Servers that benchmarks start: nothing of them is left if one is killed."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.servers import ServerFailed, vllm_serve
from tests.support.processes import is_alive
from tests.support.waiting import wait_until

# has a child, as vLLM has its engine, and answers every request
PROGRAM = """#!{python}
import os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
Path({pids!r}).write_text(f"{{os.getpid()}} {{child.pid}}")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_the_engine_of_a_vllm_that_is_killed_ends_too(tmp_path: Path) -> None:
    program, file = tmp_path / "vllm", tmp_path / "pids"
    program.write_text(PROGRAM.format(python=sys.executable, pids=str(file)))
    program.chmod(0o755)
    with pytest.raises(ServerFailed):
        serve_and_kill(program, file)
    left = [int(pid) for pid in file.read_text().split() if is_alive(int(pid))]
    for pid in left:
        psutil.Process(pid).kill()
    assert not left


def serve_and_kill(program: Path, file: Path) -> None:
    """Kill the server behind its start, and come back when what was started has seen it."""
    with vllm_serve(program, program.parent, "float32", 1, 8, 1) as server:
        pid, child = [int(text) for text in file.read_text().split()]
        assert is_alive(pid)
        assert is_alive(child)
        psutil.Process(pid).kill()
        wait_until(lambda: server.pid is not None and not is_alive(server.pid), "it has ended")
