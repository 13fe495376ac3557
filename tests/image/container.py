"""Containers as compose starts them, with crun.

They have the user of the image, a read-only root, no capabilities and a process namespace. The
network is that of this machine, and there are no limits.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.image.building import Image

# crun does not support cgroups of version 1, so version 2 is mounted at a separate place.
_CRUN = 'mount -t cgroup2 none /sys/fs/cgroup && exec crun --cgroup-manager=disabled "$@"'
_WRITABLE = ["nosuid", "noexec", "nodev", "mode=1777", "size=1g"]


class Container:
    """The entry point of the image with ``command``. It is stopped at the end of the block."""

    def __init__(
        self,
        image: Image,
        directory: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        mounts: Mapping[str, Path],
    ) -> None:
        directory.mkdir()
        self._directory = directory
        self._name = directory.name
        self._process: subprocess.Popen[bytes] | None = None
        variables = [
            *image.config["Env"],
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        config = _config(image, [*image.config["Entrypoint"], *command], variables, mounts)
        (directory / "config.json").write_text(json.dumps(config))

    def __enter__(self) -> Self:
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._crun("run", "--bundle", str(self._directory), self._name),
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subprocess.run(self._crun("delete", "--force", self._name), check=False)
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        if error is not None:
            error.add_note(f"{self._name} said:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def do(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container as its user."""
        return subprocess.run(
            self._crun("exec", self._name, *command), capture_output=True, text=True, check=False
        )

    def terminate(self, timeout_s: float) -> int:
        """Send SIGTERM and return the exit code of the first process."""
        subprocess.run(self._crun("kill", self._name, "TERM"), check=True)
        assert self._process is not None
        return self._process.wait(timeout=timeout_s)

    def _crun(self, *arguments: str) -> list[str]:
        state = self._directory.parent / "crun"
        return ["unshare", "--mount", "sh", "-c", _CRUN, "crun", "--root", str(state), *arguments]


def _config(
    image: Image, arguments: Sequence[str], variables: Sequence[str], mounts: Mapping[str, Path]
) -> dict[str, Any]:
    user, group = image.config["User"].split(":")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": arguments,
            "env": variables,
            "cwd": image.config["WorkingDir"],
            "user": {"uid": int(user), "gid": int(group)},
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.root), "readonly": True},
        "mounts": [
            _mount("/proc", "proc"),
            _mount("/dev", "tmpfs", "nosuid", "mode=755"),
            _mount("/dev/shm", "tmpfs", *_WRITABLE),  # noqa: S108 - as in every engine
            _mount("/tmp", "tmpfs", *_WRITABLE),  # noqa: S108 - as in the compose file
            *(_mount(place, str(source), "bind") for place, source in mounts.items()),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }


def _mount(destination: str, source: str, *options: str) -> dict[str, Any]:
    kind = "bind" if "bind" in options else source
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
