"""``sleb up`` says at once that it starts, and then where it can be reached."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment, free_port


@pytest.mark.slow
def test_it_says_at_once_that_it_starts_and_then_its_addresses(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "up", "--port", str(port)],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        assert first.startswith("starting Valkey, a worker and the API")
        lines = iter(process.stderr.readline, "")
        addresses = next(line for line in lines if line.startswith("web page "))
        assert f"http://localhost:{port}/ui" in addresses
        assert f"http://localhost:{port}/v1" in addresses
        assert next(lines).startswith("next: ")
    finally:
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        process.wait()
        process.stderr.close()
