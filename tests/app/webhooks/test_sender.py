"""One POST of a webhook: signed, to the address that was judged, and every way it can fail."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
import trustme
from standardwebhooks import Webhook as Library

from app.webhooks.sender import SendResult, WebhookSender
from app.webhooks.target import Address, AddressRule, address_rule, is_public, resolve
from tests.support.webhook_receiver import SECRET, Received, Receiver, receiving, verify

ANY = address_rule(is_private_allowed=True)
BODY = '{"type": "prune_job.succeeded", "data": {"name": "Grüße"}}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class Names:
    """A resolver that gives the next of these answers at each look-up."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = iter(answers)
        self.num_lookups = 0

    def __call__(self, _host: str, _port: int) -> Sequence[Address]:
        self.num_lookups += 1
        return [ip_address(address) for address in next(self._answers)]


def send(
    url: str,
    *,
    rule: AddressRule = ANY,
    names: Names | None = None,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = 15.0,
) -> SendResult:
    resolver = resolve if names is None else names
    sender = WebhookSender(SECRET, rule, resolver=resolver, tls=tls, timeout_s=timeout_s)
    try:
        return asyncio.run(sender.send("msg_1", url, BODY))
    finally:
        sender.close()


def test_a_message_is_signed_as_the_specification_says(receiver: Receiver) -> None:
    assert send(f"{receiver.url}hook?team=a%20b") == SendResult(204, None)
    (received,) = receiver.received
    assert received.path == "/hook?team=a%20b"
    assert received.body == BODY.encode()
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.message_id == "msg_1"
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    verify(received)
    Library(SECRET).verify(received.body, dict(received.headers))
    with pytest.raises(AssertionError):
        verify(Received(received.path, received.headers, received.body + b" "))


def test_the_library_agrees_with_a_published_signature() -> None:
    """The example that goes round among implementations of the scheme."""
    library = Library("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    signature = library.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (200, None),
        (299, None),
        (302, "returned 302: redirects are not followed"),
        (400, "returned 400"),
        (410, "returned 410"),
        (500, "returned 500"),
    ],
)
def test_2xx_is_a_success_and_nothing_else_is(
    receiver: Receiver, status: int, error: str | None
) -> None:
    receiver.answer = lambda _received: (status, {"Location": f"{receiver.url}elsewhere"})
    answer = send(receiver.url)
    assert answer == SendResult(status, error)
    assert answer.is_gone == (status == 410)
    assert [received.path for received in receiver.received] == ["/"]


def test_a_proxy_of_the_environment_is_passed_by(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert send(receiver.url).error is None
        assert proxy.received == []


# ---- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"])
def test_an_address_that_is_not_public_gets_nothing(receiver: Receiver, host: str) -> None:
    answer = send(f"http://{host}:{receiver.port}/", rule=is_public)
    assert answer.status is None
    assert "non-public" in str(answer.error)
    assert receiver.received == []


def test_the_address_that_was_judged_is_the_one_that_is_connected_to(receiver: Receiver) -> None:
    """A name server that gives an allowed address first and another one at the next look-up."""
    allowed, forbidden = ip_address("127.0.0.1"), ip_address("127.0.0.2")
    names = Names([str(allowed)], *([str(forbidden)] for _ in range(9)))
    with receiving("127.0.0.2", receiver.port) as trap:
        url = f"http://hooks.example:{receiver.port}/x"
        assert send(url, rule=lambda address: address != forbidden, names=names).error is None
        assert (len(receiver.received), len(trap.received), names.num_lookups) == (1, 0, 1)
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        later = send(url, rule=lambda address: address != forbidden, names=names)
        assert "non-public" in str(later.error)
        assert trap.received == []


def test_one_forbidden_address_is_enough(receiver: Receiver) -> None:
    names = Names(["127.0.0.1", "127.0.0.2"])
    url = f"http://hooks.example:{receiver.port}/"
    answer = send(url, rule=lambda address: address != ip_address("127.0.0.2"), names=names)
    assert "non-public" in str(answer.error)
    assert receiver.received == []


def test_the_next_address_is_tried_where_none_listens_at_the_first(receiver: Receiver) -> None:
    names = Names(["127.0.0.2", "::1", "127.0.0.1"])
    assert send(f"http://hooks.example:{receiver.port}/", names=names).error is None
    assert len(receiver.received) == 1


# ---- TLS


def test_a_certificate_is_asked_for_the_name_and_not_for_the_address() -> None:
    authority = trustme.CA()
    server, client = (ssl.SSLContext(p) for p in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert("hooks.example").configure_cert(server)
    authority.configure_trust(client)
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    with receiving(tls=server) as receiver:
        for host, is_taken in (("hooks.example", True), ("other.example", False)):
            url = f"https://{host}:{receiver.port}/"
            answer = send(url, names=Names(["127.0.0.1"]), tls=client)
            assert (answer.status == 204) == is_taken
        assert "certificate" in str(answer.error).lower()
        assert asked == ["hooks.example", "other.example"]
        assert [got.headers["host"] for got in receiver.received] == [
            f"hooks.example:{receiver.port}"
        ]
        untrusted = send(url.replace("other", "hooks"), names=Names(["127.0.0.1"]))
        assert "certificate" in str(untrusted.error).lower()


# ---- no answer


def test_a_receiver_that_is_not_there_is_an_error_in_words() -> None:
    with receiving() as receiver:
        url = receiver.url
    answer = send(url)
    assert answer.status is None
    assert "Connect" in str(answer.error)
    missing = send("http://hooks.invalid./")
    assert "does not resolve" in str(missing.error)


def answer_of(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    timeout_s: float = 15.0,
) -> SendResult:
    """What is made of a receiver that behaves like this once it has the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"}}")
            await behave(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def main() -> SendResult:
        sender = WebhookSender(SECRET, ANY, timeout_s=timeout_s)
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answer = await sender.send("msg_1", f"http://127.0.0.1:{port}/", BODY)
        sender.close()
        return answer

    return asyncio.run(main())


def test_a_receiver_that_takes_too_long_is_given_up_as_a_whole() -> None:
    """Bytes that trickle in would reset a limit between reads."""

    async def trickle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    began = time.monotonic()
    assert answer_of(trickle, timeout_s=0.3) == SendResult(None, "no response within 0.3 s")
    assert time.monotonic() - began < 10


def test_what_is_no_http_is_an_error_in_words() -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()

    answer = answer_of(babble)
    assert answer.status is None
    assert str(answer.error).startswith("no response: ")


def test_the_body_of_an_answer_is_not_read() -> None:
    """The status is all that counts, however long the body is."""
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()

    assert answer_of(flood) == SendResult(200, None)
    assert written < 64 * 2**20
