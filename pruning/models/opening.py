"""Models of others are opened by a process with limits, once for each content of their files.

A verdict is kept beside the models, by the digest of all files but the weights.
"""

import atexit
import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from pruning.environment import is_sandboxed, offline_environment
from pruning.models.companions import COMPANION_FILES
from pruning.models.inspection_record import package_versions
from pruning.models.safetensors_headers import NotAModel
from pruning.records import InvalidRecord, open_stored, parse_record, read_stored, replace_file

FILE = ".opened.json"
MAX_CPU_S = 10.0  # of one model
_MAX_KEPT = 1_000
_PART_BYTES = 2**20
_FILES = ("config.json", *COMPANION_FILES)

_Stamp = tuple[tuple[str, int, int], ...]


class OpeningProcess:
    """Starts ``pruning.models.opener`` when it is needed. One model is opened at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def refusal(self, path: Path) -> str:
        """Why the model in the directory is refused; empty if it is not.

        Raises ``NotAModel`` if the process ends twice.
        """
        with self._lock:
            for _ in range(2):  # it may have just ended, as it does when it is idle
                if answer := self._answer(path):
                    return str(json.loads(answer).get("refused", ""))
                self.end()
        raise NotAModel(f"{path}: the process that opens models has ended: try again")

    def _answer(self, path: Path) -> str:
        """Empty if the process has ended."""
        if self._process is None:
            self._process = self._started()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(
                json.dumps({"path": str(path.absolute()), "cpu_s": MAX_CPU_S}) + "\n"
            )
            self._process.stdin.flush()
        except OSError:
            return ""
        return self._process.stdout.readline()

    def _started(self) -> "subprocess.Popen[str]":
        atexit.register(self.end)
        return subprocess.Popen(
            [sys.executable, "-m", "pruning.models.opener"],
            env={**offline_environment(), "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service, which ends it
            text=True,
        )

    def end(self) -> None:
        """End the process, if it runs."""
        atexit.unregister(self.end)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_PROCESS = OpeningProcess()


class Openings:
    """What became of the models that were opened, with a record under ``root`` if there is one."""

    def __init__(self, root: Path | None = None) -> None:
        self._file = None if root is None else root / FILE
        self._known: dict[Path, tuple[_Stamp, str]] = {}

    def check(self, path: Path) -> None:
        """Open the model unless these files were opened before. Raises ``NotAModel``."""
        if not is_sandboxed():
            return
        try:
            stamp = _stamp(path)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                known = self._known[path] = stamp, self._refusal(path)
        except OSError:  # which reading it will say
            return
        if known[1]:
            raise NotAModel(f"{path}: {known[1]}")

    def _refusal(self, path: Path) -> str:
        digest = _digest(path)
        verdicts = self._verdicts()
        if digest not in verdicts:
            verdicts = {**self._verdicts(), digest: _PROCESS.refusal(path)}
            self._write(verdicts)
        return verdicts[digest]

    def _verdicts(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            content: dict[str, Any] = parse_record(read_stored(self._file))
        except (OSError, InvalidRecord):
            return {}
        verdicts = content.get("opened")
        if content.get("versions") != package_versions() or not isinstance(verdicts, dict):
            return {}
        return {digest: reason for digest, reason in verdicts.items() if isinstance(reason, str)}

    def _write(self, verdicts: dict[str, str]) -> None:
        """Replace the file atomically, unless the directory is read-only."""
        if self._file is None:
            return
        newest = dict([*verdicts.items()][-_MAX_KEPT:])
        content = json.dumps({"versions": package_versions(), "opened": newest})
        with suppress(OSError):
            replace_file(self._file, content.encode(), 0o666)


def _stamp(path: Path) -> _Stamp:
    """Changes when a file does."""
    stats = [(name, (path / name).stat()) for name in _FILES if (path / name).exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _digest(path: Path) -> str:
    """Raises ``OSError``."""
    digest = hashlib.sha256()
    for name in _FILES:
        if os.path.lexists(path / name):
            with open_stored(path / name) as file:
                digest.update(f"{name} {os.fstat(file.fileno()).st_size} ".encode())
                while part := file.read(_PART_BYTES):
                    digest.update(part)
    return digest.hexdigest()
