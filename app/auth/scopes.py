"""What each path asks of a key, and whether keys are asked for at all."""

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from app.auth.keys import ApiKey, InvalidKeyFile, KeyFile, KeyRefused, Scope, ScopeMissing
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


class NotLocal(Exception):
    """A page of elsewhere asks, by way of a browser on this machine."""

    def __init__(self, header: str) -> None:
        super().__init__(
            f"the header {header} names another machine, and this service, which asks for no keys, "
            "answers nobody but this one: ask http://localhost, make a key with `sleb keys "
            "create`, or start it with --insecure"
        )


class OpenDoor(RuntimeError):
    """Whoever reaches the address could do everything."""


class Access:
    """Asks for keys if it has to, or as soon as there has been one.

    ``is_guarded``: until then, pages that a browser on this machine shows are kept out. They could
    post to any address, and read what it answers if their host's name is made to lead to it.
    """

    def __init__(self, keys: KeyFile, *, is_required: bool, is_guarded: bool = False) -> None:
        self._keys = keys
        self._is_required = is_required
        self._is_guarded = is_guarded

    @property
    def is_on(self) -> bool:
        return self._is_required or self._keys.exists

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine is answered."""
        return self._is_guarded and not self.is_on

    def admit(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> ApiKey | None:
        """Whose request this is; None if anybody's is welcome.

        Raises ``NotLocal``, ``KeyRefused`` or ``ScopeMissing``.
        """
        if self.is_local:
            _check_names(headers)
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
    is_guarded = is_loopback(settings) and not settings.insecure
    return Access(KeyFile(settings.keys_file), is_required=is_required, is_guarded=is_guarded)


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


def generates(method: str, path: str) -> bool:
    """Whether it is work for the engine."""
    return method not in _READING and Scope.GENERATE in (scopes_for(method, path) or ())


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


def _check_names(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Browsers send both, and no page can change them. Raises ``NotLocal``."""
    for name, value in headers:
        if name.lower() == b"host" and not _is_here(b"//" + value):
            raise NotLocal("Host")
        if name.lower() == b"origin" and not _is_here(value):
            raise NotLocal("Origin")


def _is_here(url: bytes) -> bool:
    try:
        host = (urlsplit(url.decode("ascii")).hostname or "").removesuffix(".")
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:  # it is no name of this machine, and no address
        return False
