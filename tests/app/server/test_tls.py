"""TLS of the API, with certificates that change while it serves."""

import logging
import socket
import ssl
import threading
from pathlib import Path

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from app.config import ServeSettings
from app.server.tls import Certificates, InvalidCertificate
from tests.support.certificates import Files
from tests.support.engines import gated
from tests.support.serving import serving
from tests.support.waiting import LIMIT_S


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def serial(certificates: Certificates, context: ssl.SSLContext) -> str:
    """Of the certificate that a new connection gets; raises what the client's handshake raises."""
    ours, theirs = socket.socketpair()
    failures: list[Exception] = []

    def serve() -> None:
        try:
            with theirs, certificates.context.wrap_socket(theirs, server_side=True) as accepted:
                accepted.recv(1)
        except OSError as error:
            failures.append(error)

    server = threading.Thread(target=serve)
    server.start()
    try:
        with context.wrap_socket(ours, server_hostname="localhost") as connection:
            found = connection.getpeercert()
            assert found is not None
            connection.send(b"x")
            return str(found["serialNumber"])
    finally:
        server.join(LIMIT_S)
        if failures:
            raise failures[0]


@pytest.fixture
def certificates(files: Files) -> Certificates:
    return Certificates(files.cert, files.key, None)


def test_new_connections_get_the_new_certificate(files: Files, certificates: Certificates) -> None:
    first = serial(certificates, files.client_context())
    assert serial(certificates, files.client_context()) == first
    files.renew()
    assert serial(certificates, files.client_context()) != first


@pytest.mark.parametrize("broken", ["cert", "key", "both"])
def test_broken_files_keep_the_old_certificate_and_say_so(
    files: Files, certificates: Certificates, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    first = serial(certificates, files.client_context())
    if broken == "both":
        files.cert.unlink()
        files.key.write_text("no key")
    else:
        getattr(files, broken).write_text("no certificate")
    for _ in range(3):
        assert serial(certificates, files.client_context()) == first
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1, "once, not at every connection"
    assert str(files.key) in said[0].getMessage()
    files.renew()
    assert serial(certificates, files.client_context()) != first


def test_a_certificate_without_its_key_is_not_used(
    files: Files, certificates: Certificates
) -> None:
    """The two files are replaced one after the other."""
    first, key = serial(certificates, files.client_context()), files.key.read_bytes()
    files.renew()
    new_key = files.key.read_bytes()
    files.key.write_bytes(key)
    assert serial(certificates, files.client_context()) == first
    files.key.write_bytes(new_key)
    assert serial(certificates, files.client_context()) != first


def test_a_key_with_a_passphrase_is_refused(files: Files) -> None:
    """And the terminal is not asked for it."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - of trustme

    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(pem, pkcs8, secret))
    with pytest.raises(InvalidCertificate, match="without a passphrase"):
        Certificates(files.cert, files.key, None)


def test_only_clients_of_the_ca_of_the_moment_get_in(files: Files) -> None:
    clients, others = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(files.client_ca)
    certificates = Certificates(files.cert, files.key, files.client_ca)
    ours = files.client_context(clients.issue_cert("ours@example.org"))
    theirs = files.client_context(others.issue_cert("theirs@example.org"))
    assert serial(certificates, ours)
    for refused in (theirs, files.client_context()):
        with pytest.raises(OSError, match=r"(?i)certificate"):
            serial(certificates, refused)
    others.cert_pem.write_to_path(files.client_ca)
    assert serial(certificates, theirs)
    with pytest.raises(OSError, match=r"(?i)certificate"):
        serial(certificates, ours)


def test_a_stream_lives_through_a_new_certificate(
    settings: ServeSettings, redis_url: str, files: Files
) -> None:
    settings = settings.model_copy(update=files.settings)
    body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 20, "stream": True}
    with gated(num_free=5) as engine, serving(settings, redis_url, engine=engine) as (_, url):
        assert url.startswith("https://")
        with (
            httpx2.Client(verify=files.client_context(), base_url=url) as client,
            client.stream("POST", "/generate", json=body) as response,
        ):
            events = response.iter_lines()
            assert "text" in next(events)
            files.ca = trustme.CA()
            files.renew()
            with httpx2.Client(verify=files.client_context(), base_url=url) as newer:
                assert newer.get("/health/live").status_code == 200
            engine.gate.set()
            assert "event: done" in list(events)


def test_both_files_belong_together(files: Files) -> None:
    for given in ({"tls_cert": files.cert}, {"tls_key": files.key}, {"tls_client_ca": files.cert}):
        with pytest.raises(ValidationError, match="SLEB_TLS_CERT"):
            ServeSettings(**given)  # type: ignore[arg-type]
