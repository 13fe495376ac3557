"""A request on its way from the gate of a cluster to a replica, and what may become of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PASSED_ON = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
    "headers", "client", "server",
)  # fmt: skip
_SAFE = ("GET", "HEAD", "OPTIONS")
_GENERATIONS = ("/generate", "/compare", "/v1/")
_EVERYWHERE = re.compile(r"GET /metrics|GET /health/(live|ready)|POST /models/[^/]+/(load|unload)")


class ReplicaLost(RuntimeError):
    """The replica that worked on a request is gone, and the request cannot be given to another."""


class NoReplica(RuntimeError):
    """No replica takes requests now."""


class ReplicasBusy(RuntimeError):
    """More requests wait for a replica than may."""

    retry_after_s = 1.0


@dataclass(frozen=True)
class Asked:
    """What a replica is asked, as plain values.

    ``scope`` is ASGI's, without what belongs to one process. ``body`` is all of it, or somewhat
    more than the largest that is allowed.
    """

    scope: Mapping[str, Any]
    body: bytes

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def is_for_all(self) -> bool:
        """Whether every replica has to be asked: its answer is about its own process."""
        return _EVERYWHERE.fullmatch(f"{self.scope['method']} {self.path}") is not None

    @property
    def is_about_health(self) -> bool:
        return self.path.startswith("/health/")

    def is_answered_by(self, answer: "Whole") -> bool:
        """Whether the others need not be waited for: one replica that is well is enough."""
        return self.is_about_health and answer.status == 200

    @property
    def is_repeatable(self) -> bool:
        """Whether another replica may be asked, though nobody knows how far this one came."""
        has_key = any(name == b"idempotency-key" for name, _ in self.scope["headers"])
        return self.scope["method"] in _SAFE or self.path.startswith(_GENERATIONS) or has_key

    @property
    def is_stream_of_tokens(self) -> bool:
        """Whether its answer, if it is a stream, has begun with its first token only."""
        return str(self.scope["method"]) == "POST"


@dataclass(frozen=True)
class Whole:
    """All of a response, and the name of the replica that it is from."""

    replica: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def asked_of(scope: Mapping[str, Any], body: bytes) -> Asked:
    """Of an ASGI scope of type http."""
    return Asked({name: scope[name] for name in _PASSED_ON if name in scope}, body)
