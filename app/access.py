"""What each path asks of a key, and whether keys are asked for at all."""

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from app.api_keys import ApiKey, InvalidKeyFile, KeyFile, KeyRefused, Scope, ScopeMissing
from app.config import ServeSettings

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 512  # of Authorization; a key of ours has 48

# Health and metrics are for machines that have no key; the description of the API is no secret.
_OPEN = frozenset(
    {
        "/health/live",
        "/health/ready",
        "/version",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
    }
)
_SCOPES = {
    "/generate": Scope.GENERATE,
    "/compare": Scope.GENERATE,
    "/v1": Scope.GENERATE,
    "/prune-jobs": Scope.JOBS,
}
_READING = ("GET", "HEAD")


class OpenDoor(RuntimeError):
    """Whoever reaches the address could do everything."""


class Access:
    """Asks for keys if it has to, or as soon as there has been one."""

    def __init__(self, keys: KeyFile, *, is_required: bool) -> None:
        self._keys = keys
        self._is_required = is_required

    @property
    def is_on(self) -> bool:
        return self._is_required or self._keys.exists

    def admit(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> ApiKey | None:
        """Whose request this is; None if anybody's is welcome.

        Raises ``KeyRefused`` or ``ScopeMissing``.
        """
        scopes = scopes_for(method, path)
        if scopes is None or not self.is_on:
            return None
        key = self._find(_bearer(headers))
        if not key.scopes & scopes:
            raise ScopeMissing(key.name, scopes - {Scope.ADMIN} or scopes)
        return key

    def _find(self, bearer: str) -> ApiKey:
        try:
            key = self._keys.find(bearer)
        except InvalidKeyFile:
            logger.exception("nobody is let in")
            key = None
        if key is None:
            raise KeyRefused("there is no such key, or not any more", is_sent=True)
        return key


def access_to(settings: ServeSettings) -> Access:
    is_required = not (is_loopback(settings) or settings.insecure)
    return Access(KeyFile(settings.keys_file), is_required=is_required)


def check_door(settings: ServeSettings) -> None:
    """Before anything listens. Raises ``OpenDoor`` or ``InvalidKeyFile``."""
    keys = KeyFile(settings.keys_file).known()
    if not (keys or is_loopback(settings) or settings.insecure):
        raise OpenDoor(
            f"without a key, whoever reaches {settings.host} could do everything: make one with "
            "`sleb keys create NAME --scope admin`, listen on 127.0.0.1, or say --insecure "
            "(SLEB_INSECURE=true) if something else keeps others out"
        )


def is_loopback(settings: ServeSettings) -> bool:
    host: IPv4Address | IPv6Address | str = settings.host
    return host == "localhost" if isinstance(host, str) else host.is_loopback


def scopes_for(method: str, path: str) -> frozenset[Scope] | None:
    """Any of them will do, None asks for none; a path that nobody has thought of is for admins."""
    if path in _OPEN:
        return None
    if _is_below(path, "/models") and method in _READING:
        return frozenset(Scope)
    found = {scope for root, scope in _SCOPES.items() if _is_below(path, root)}
    return frozenset({Scope.ADMIN, *found})


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Raises ``KeyRefused``; what is too long is not even hashed."""
    sent = [value for name, value in headers if name.lower() == b"authorization"]
    if not sent:
        raise KeyRefused("this service asks for a key", is_sent=False)
    scheme, _, key = sent[0].partition(b" ")
    if len(sent) > 1 or scheme.lower() != b"bearer" or not key.strip():
        raise KeyRefused("there is no single bearer key", is_sent=True)
    if len(sent[0]) > MAX_HEADER_BYTES or not key.isascii():
        raise KeyRefused("that is no key: it is too long, or has strange characters", is_sent=True)
    return key.strip().decode("ascii")
