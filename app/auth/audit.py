"""The audit log as lines of JSON: who asked what, when and from where, and what was done to keys.

The line of a request is in the file before anything is done for it, so none is missing, whatever
happens next. A second line with the status is written before its response is sent.
"""

import fcntl
import json
import logging
import os
import pwd
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.auth.keys import ApiKey
from app.request_id import current_request_id

logger = logging.getLogger(__name__)

_MAX_PATH_CHARS = 2048
_PROBES = (
    "/health",
    "/ping",
    "/metrics",
)  # asked every few seconds, without a key, and change nothing


def is_probe(path: str) -> bool:
    """Whether requests to this path are not audited."""
    return path.startswith(_PROBES)


class AuditUnavailable(RuntimeError):
    """The audit log cannot be written, so no request is accepted."""

    retry_after_s = 10.0


class AuditLog:
    """A file that processes of one machine append to. Raises ``AuditUnavailable``.

    It is opened for every line, so it may be moved away at any time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write(b"")

    def asked(
        self, scope: Mapping[str, Any], key: ApiKey | None, refused: str | None = None
    ) -> None:
        """Note a request before it is handled. ``refused`` is the type of its problem."""
        if is_probe(scope["path"]):
            return
        client = scope.get("client")
        fields = {
            "key": key.name if key else None,
            "tenant": key.owner if key else None,
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"][:_MAX_PATH_CHARS],
            "query": scope.get("query_string", b"").decode("latin-1")[:_MAX_PATH_CHARS],
            "refused": refused,
        }
        self._line("request", fields)

    def commanded(self, command: str, fields: Mapping[str, Any]) -> None:
        """Note a command of this machine before it changes anything."""
        self._line("command", {"user": _user(), "command": command, **fields})

    def answered(self, scope: Mapping[str, Any], status: int | None) -> None:
        """Note the status of the response; None if the client or the process was gone before.

        The request is noted already, so a failure is logged and not raised.
        """
        if is_probe(scope["path"]):
            return
        try:
            self._line("response", {"status": status})
        except AuditUnavailable:
            logger.exception("the audit log lacks the status of a response")

    def _line(self, event: str, fields: Mapping[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "event": event, "request_id": current_request_id.get(), **fields}
        self._write(json.dumps(line).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """Lines of several processes do not mix, and one that a full disk cuts spoils no other."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
                line = _new_line(file, line)
                num_written = os.write(file, line)
            finally:
                os.close(file)
        except OSError as error:
            raise AuditUnavailable(
                f"cannot write the audit log {self._path} ({error.strerror}): free space, or "
                "correct SLEB_AUDIT_LOG"
            ) from error
        if num_written < len(line):
            raise AuditUnavailable(f"no space left for the audit log {self._path}: free space")


def _user() -> str:
    """The user of this process, not by the environment, which anyone can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that has no name
        return str(os.getuid())


def _new_line(file: int, line: bytes) -> bytes:
    """The line, after the end of one that a full disk has cut."""
    size = os.fstat(file).st_size
    is_cut = line and size and os.pread(file, 1, size - 1) != b"\n"
    return b"\n" + line if is_cut else line
