"""A separate Docker daemon, and docker compose with it."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.image.compose import ROOT
from tests.support.waiting import wait_until

PACKAGES = ("docker.io", "docker-cli", "docker-compose", "iptables")
_COMMANDS = ("dockerd", "docker", "docker-compose", "iptables")
_STOP_S = 60.0


class Docker:
    """A client of the daemon at this socket."""

    def __init__(self, host: str) -> None:
        self._host = host

    def do(
        self, *command: str, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a ``docker`` command in the root of the project."""
        return subprocess.run(
            ["docker", *command],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": self._host, **(environment or {})},
            capture_output=True,
            text=True,
            check=check,
        )


@contextmanager
def daemon(directory: Path) -> Iterator[Docker]:
    """Run a daemon that shares nothing with an existing one."""
    if not all(map(shutil.which, _COMMANDS)):
        pytest.fail(f"apt-get install --no-install-recommends {' '.join(PACKAGES)}")
    host = f"unix://{directory / 'docker.sock'}"
    places = {"data-root": "data", "exec-root": "run", "pidfile": "pid"}
    options = [f"--{name}={directory / place}" for name, place in places.items()]
    line = ["dockerd", *options, f"--host={host}", "--bridge=none"]
    docker = Docker(host)
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_until(
                lambda: docker.do("info", check=False).returncode == 0,
                "the Docker daemon is ready",
                60,
            )
            yield docker
        finally:
            process.terminate()
            process.wait(_STOP_S)
