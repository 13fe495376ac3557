"""Which scopes each path requires, and whether requests need an API key at all."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

from app.auth.keys import ApiKey, InvalidKeyFile, KeyFile, KeyRefused, Scope, ScopeMissing
from app.auth.sessions import COOKIE, NotSameOrigin, Session, Sessions
from app.config import ServeSettings

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 512  # of Authorization; a key has 48

# Probes and scrapers have no key, and the OpenAPI document is no secret.
_OPEN = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/health/generate",
        "/ping",
        "/version",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/session",
        "/",
    }
)
_PAGES = "/ui"  # frames and assets, the same for every caller and without data
_SCOPES = {
    "/generate": Scope.GENERATE,
    "/compare": Scope.GENERATE,
    "/evals": Scope.GENERATE,
    "/tokenize": Scope.GENERATE,
    "/detokenize": Scope.GENERATE,
    "/v1": Scope.GENERATE,
    "/prune-jobs": Scope.JOBS,
    "/heal-jobs": Scope.JOBS,
    "/results": Scope.JOBS,
}
_READING = ("GET", "HEAD")


class NotLocal(Exception):
    """A page of another site sent the request, through a browser on this machine."""

    def __init__(self, header: str) -> None:
        super().__init__(
            f"the header {header} names another machine, but without API keys this service "
            "accepts only requests from this machine: use http://localhost, create a key "
            "with `sleb keys create`, or start the service with --insecure"
        )


class UnprotectedAddress(RuntimeError):
    """Other machines could reach the service, and it has no API key."""


@dataclass(frozen=True)
class Authorizer:
    """Requires an API key if ``is_required``, or once a key was created.

    ``is_local_without_keys`` refuses pages of other sites until then: a browser on this machine
    lets them post to any address, and by DNS rebinding also read the response. Without
    ``sessions`` cookies mean nothing.
    """

    keys: KeyFile
    is_required: bool
    is_local_without_keys: bool = False
    sessions: Sessions | None = None

    @property
    def requires_key(self) -> bool:
        return self.is_required or self.keys.exists

    @property
    def is_local(self) -> bool:
        """Whether only requests from this machine are accepted."""
        return self.is_local_without_keys and not self.requires_key

    def authorize(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> ApiKey | None:
        """Return the key of the request; None if the path needs none.

        Raises ``NotLocal``, ``KeyRefused``, ``NotSameOrigin`` or ``ScopeMissing``.
        """
        if self.is_local:
            _check_local(headers)
        scopes = scopes_for(method, path)
        if scopes is None or not self.requires_key:
            return None
        key = self._key(method, headers)
        if not key.scopes & scopes:
            raise ScopeMissing(key, scopes - {Scope.ADMIN} or scopes)
        return key

    def session(self, headers: Iterable[tuple[bytes, bytes]]) -> Session | None:
        """Return the session of the cookie; None without one that is valid."""
        cookie = _cookie(headers)
        if cookie is None or self.sessions is None:
            return None
        try:
            return self.sessions.find(cookie)
        except InvalidKeyFile:
            logger.exception("all sessions are rejected, because the API keys cannot be read")
            return None

    def _key(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """The key that is sent, or that of the session. A key that is sent comes first."""
        session = None if _sent(headers, b"authorization") else self.session(headers)
        if session is None:
            return self.find(_bearer(headers))
        if method not in _READING:
            check_same_origin(headers)
        return session.key

    def find(self, bearer: str) -> ApiKey:
        """Raises ``KeyRefused``."""
        try:
            key = self.keys.find(bearer)
        except InvalidKeyFile:
            logger.exception("all requests are rejected, because the API keys cannot be read")
            key = None
        if key is None:
            raise KeyRefused("unknown or revoked key", is_sent=True)
        if key.has_ended(time.time()):
            raise KeyRefused(f"the key {key.name!r} has expired: request a new one", is_sent=True)
        return key


def authorizer_of(settings: ServeSettings) -> Authorizer:
    is_local = is_loopback(settings)
    return Authorizer(
        KeyFile(settings.keys_file),
        sessions=sessions_of(settings),
        is_required=not (is_local or settings.insecure),
        is_local_without_keys=is_local and not settings.insecure,
    )


def sessions_of(settings: ServeSettings) -> Sessions:
    return Sessions(KeyFile(settings.keys_file), settings.sessions_file)


def check_address(settings: ServeSettings) -> None:
    """Call before listening. Raises ``UnprotectedAddress`` or ``InvalidKeyFile``."""
    keys = KeyFile(settings.keys_file).known()
    if not (keys or is_loopback(settings) or settings.insecure):
        raise UnprotectedAddress(
            f"without an API key, any client that can reach {settings.host} has full "
            "access: create a key with `sleb keys create NAME --scope admin`, listen on "
            "127.0.0.1, or pass --insecure (SLEB_INSECURE=true) if access is restricted "
            "otherwise"
        )


def is_loopback(settings: ServeSettings) -> bool:
    host: IPv4Address | IPv6Address | str = settings.host
    return host == "localhost" if isinstance(host, str) else host.is_loopback


def scopes_for(method: str, path: str) -> frozenset[Scope] | None:
    """Return the scopes of which one is required, or None. Unlisted paths are for admins."""
    if path in _OPEN or _is_below(path, _PAGES):
        return None
    if method in _READING and (path == "/status" or _is_below(path, "/models")):
        return frozenset(Scope)
    scopes = {scope for root, scope in _SCOPES.items() if _is_below(path, root)}
    return frozenset({Scope.ADMIN, *scopes})


def generates(method: str, path: str) -> bool:
    """Whether the request generates text, and so counts as a concurrent generation."""
    return method not in _READING and Scope.GENERATE in (scopes_for(method, path) or ())


def check_same_origin(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check that a page of this service asks, as Host names it. Raises ``NotSameOrigin``."""
    origins, hosts = _sent(headers, b"origin"), _sent(headers, b"host")
    if len(origins) != 1 or len(hosts) != 1:  # of several, each reader may take another
        raise NotSameOrigin
    (origin,), (host,) = origins, hosts
    scheme, _, address = origin.partition(b"://")
    if scheme not in (b"http", b"https") or not host or address.lower() != host.lower():
        raise NotSameOrigin


def _cookie(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the value of the cookie of sessions."""
    return cookie_parser(b";".join(_sent(headers, b"cookie")).decode("latin-1")).get(COOKIE)


def _sent(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """The values of all headers of this name."""
    return [value for name, value in headers if name.lower() == wanted]


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the bearer token. Raises ``KeyRefused``, also for one too long to be a key."""
    sent = _sent(headers, b"authorization")
    if not sent:
        raise KeyRefused("this service requires an API key", is_sent=False)
    scheme, _, key = sent[0].partition(b" ")
    if len(sent) > 1 or scheme.lower() != b"bearer" or not key.strip():
        raise KeyRefused("expected exactly one bearer token", is_sent=True)
    if len(sent[0]) > MAX_HEADER_BYTES or not key.isascii():
        raise KeyRefused("malformed key: too long, or not ASCII", is_sent=True)
    return key.strip().decode("ascii")


def _check_local(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check Host and Origin, which pages cannot forge. Raises ``NotLocal``."""
    for name, before in (("Host", b"//"), ("Origin", b"")):
        urls = [before + value for value in _sent(headers, name.lower().encode())]
        if len(urls) > 1 or not all(map(_is_here, urls)):  # of several, readers take different ones
            raise NotLocal(name)


def _is_here(url: bytes) -> bool:
    try:
        host = (urlsplit(url.decode("ascii")).hostname or "").removesuffix(".")
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:  # neither a name of this machine nor an address
        return False
