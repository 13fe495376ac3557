"""docker-compose.yml as ``docker compose`` renders it."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.debian import tool

ROOT = Path(__file__).parents[2]
Service = dict[str, Any]


@cache
def rendered(*options: str) -> dict[str, Any]:
    """The rendered file, independent of the environment of this machine."""
    binary = tool("docker-compose", package="docker-compose")
    ran = subprocess.run(
        [binary, *options, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def services(*options: str) -> dict[str, Service]:
    found: dict[str, Service] = rendered(*options)["services"]
    return found


def volumes(service: Service, kind: str = "volume") -> dict[str, dict[str, Any]]:
    """Mounts of a service by source."""
    return {volume["source"]: volume for volume in service["volumes"] if volume["type"] == kind}


def valkey_options(acl: Path) -> list[str]:
    """Options of Valkey in the compose file, with users from this file."""
    command: list[str] = services()["valkey"]["command"]
    name, *options = command
    assert name == "valkey-server"
    options[options.index("--aclfile") + 1] = str(acl)
    return options


def seconds(duration: str) -> int:
    """Seconds of a duration such as ``1m30s``."""
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(f"{number}{unit}" for number, unit in parts) == duration
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)
