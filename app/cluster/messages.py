"""Messages between the ingress of a cluster and its replicas, and the errors of the ingress."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_SCOPE_FIELDS = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string",
    "headers", "client", "server",
)  # fmt: skip
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_GENERATION_PATHS = ("/generate", "/compare", "/evals", "/v1/")
_BROADCAST = re.compile(r"GET /metrics|GET /health/(live|ready)|POST /models/[^/]+/(load|unload)")


class ReplicaLost(RuntimeError):
    """The replica that handled a request has died, and no other one can take the request over."""


class NoReplica(RuntimeError):
    """No replica takes requests now."""


class ReplicasBusy(RuntimeError):
    """Too many requests are waiting for a replica."""

    retry_after_s = 1.0


@dataclass(frozen=True)
class ForwardedRequest:
    """An HTTP request as plain values that can be sent to another process.

    ``scope`` is the ASGI scope without the fields that belong to one process. ``body`` is complete,
    or longer than the limit if the client sent too much.
    """

    scope: Mapping[str, Any]
    body: bytes

    @classmethod
    def of(cls, scope: Mapping[str, Any], body: bytes) -> Self:
        """``scope`` is an ASGI scope of type http."""
        return cls({name: scope[name] for name in _SCOPE_FIELDS if name in scope}, body)

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def is_broadcast(self) -> bool:
        """Whether it is about the process of a replica, and therefore goes to every replica."""
        return _BROADCAST.fullmatch(f"{self.method} {self.path}") is not None

    @property
    def is_about_health(self) -> bool:
        return self.path.startswith(("/health", "/ping"))

    @property
    def is_repeatable(self) -> bool:
        """Whether it can go to another replica after the first one may have executed it."""
        has_key = any(name == b"idempotency-key" for name, _ in self.scope["headers"])
        is_generation = self.path.startswith(_GENERATION_PATHS)
        return self.method in _SAFE_METHODS or is_generation or has_key


@dataclass(frozen=True)
class ReplicaResponse:
    """The complete response of one replica."""

    replica: str  # its name
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
