"""TLS of the API: certificates from files, which are read again when they change.

Each new connection gets the certificate of the moment; open connections keep theirs. Files that
cannot be used leave the last good certificate in place.
"""

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from app.config import ServeSettings

logger = logging.getLogger(__name__)

_State = Sequence[tuple[int, int, int] | None]  # inode, size and time of each file


class InvalidCertificate(ValueError):
    """The files are missing, no certificate and key, or do not belong together."""


class Certificates:
    """The certificates of a server: a certificate with its chain, its key, and the CA of clients.

    All are PEM files; without the last one, clients need none. Raises ``InvalidCertificate`` if
    the first ones are no good.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._state = self._files_state()
        self._current = self._read()
        self.context = self._read()  # of the server, which hands each connection to the current one
        self.context.sni_callback = self._choose

    @classmethod
    def of(cls, settings: ServeSettings) -> Self | None:
        """Those of the settings; None for a service without TLS."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Called at every handshake, whether the client names a host or not."""
        if (state := self._files_state()) != self._state:
            self._state = state
            self._reload()
        connection.context = self._current

    def _reload(self) -> None:
        try:
            self._current = self._read()
        except InvalidCertificate as error:
            logger.error("the previous certificate stays in use: %s", error)
        else:
            logger.info("new connections use the new certificate from %s", self._certificate)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever the system would allow
        context.set_alpn_protocols(["http/1.1"])
        try:
            # a key with a passphrase is refused: without one here, OpenSSL would ask the terminal
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:
            raise InvalidCertificate(
                f"{self._certificate} and {self._key}: expected a PEM certificate with its "
                f"chain, and its PEM key without a passphrase ({error})"
            ) from error
        if self._client_ca is not None:
            _require_clients(context, self._client_ca)
        return context

    def _files_state(self) -> _State:
        """What changes when a file is replaced or written; None for one that cannot be read."""
        paths = (self._certificate, self._key, self._client_ca)
        return [_state(path) for path in paths if path is not None]


def _require_clients(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(client_ca)
    except (OSError, ValueError) as error:
        raise InvalidCertificate(
            f"{client_ca}: expected PEM certificates of CAs ({error})"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED
    # a resumed session would not be checked against a CA that has changed since
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
