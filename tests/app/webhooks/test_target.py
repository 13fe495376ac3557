"""Where webhooks may go: every spelling of an address that is not public, and bad URLs."""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.webhooks.target import (
    MAX_URL_CHARS,
    InvalidWebhook,
    UnknownHost,
    address_rule,
    check,
    is_public,
    parse,
    resolve,
)

ANY = address_rule(is_private_allowed=True)
INTERNAL = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]

# every one of these is read by the system's resolver, without any name server
NOT_PUBLIC = [
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0",
    "0.0.0.0",  # noqa: S104 - refused, and not listened on
    "localhost",
    "LOCALHOST",
    "10.0.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0xA9FEA9FE",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::1]",
    "[2002:a00:1::]",
    "[2001:db8::1]",
    "[2001:0:a00:1::]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[ff02::1]",
]
PUBLIC = ["8.8.8.8", "0x08080808", "[2606:4700::1111]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]"]


@pytest.mark.parametrize("host", NOT_PUBLIC)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_that_is_not_public_is_refused_however_it_is_spelt(
    scheme: str, host: str
) -> None:
    url = f"{scheme}://{host}:8080/hook"
    with pytest.raises(InvalidWebhook, match="SLEB_WEBHOOK_ALLOW_PRIVATE") as refused:
        check(url, is_public)
    assert refused.value.param == "webhook.url"
    check(url, ANY)


@pytest.mark.parametrize("host", PUBLIC)
def test_a_public_address_is_taken(host: str) -> None:
    check(f"https://{host}/hook", is_public)


@pytest.mark.parametrize("form", ["{}", "::ffff:{}", "64:ff9b::{}", "2002:{:x}"])
@given(data=st.data())
def test_no_form_of_an_internal_address_is_public(form: str, data: st.DataObject) -> None:
    network = data.draw(st.sampled_from(INTERNAL))
    number = data.draw(st.integers(int(network.network_address), int(network.broadcast_address)))
    if form.startswith("2002"):
        text = f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1"
    else:
        text = form.format(IPv4Address(number))
    assert not is_public(ip_address(text))


@given(number=st.integers(0, 2**128 - 1))
def test_no_ipv6_address_outside_the_public_space_is_public(number: int) -> None:
    address = IPv6Address(number)
    if number >> 125 != 0b001 and address.ipv4_mapped is None and number >> 32 != 0x64FF9B << 64:
        assert not is_public(address)


def looked_up(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def getaddrinfo(*_args: Any, **_kwargs: Any) -> Sequence[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "::1"], ["fe80::1%eth0"]]
)
def test_a_name_is_judged_by_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    looked_up(monkeypatch, *addresses)
    with pytest.raises(InvalidWebhook, match="non-public"):
        check("https://hooks.example/", is_public)
    looked_up(monkeypatch, "8.8.8.8", "8.8.8.8", "2606:4700::1111")
    check("https://hooks.example/", is_public)
    assert len(resolve("hooks.example", 443)) == 2


def test_a_name_that_does_not_exist_is_refused_and_one_that_cannot_be_looked_up_now_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = socket.EAI_NONAME

    def getaddrinfo(*_args: Any, **_kwargs: Any) -> Sequence[Any]:
        raise socket.gaierror(code, "so it is")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(InvalidWebhook, match=r"'hooks.example' does not resolve: so it is"):
        check("https://hooks.example/", is_public)
    code = socket.EAI_AGAIN
    check("https://hooks.example/", is_public)
    with pytest.raises(UnknownHost):
        resolve("hooks.example", 443)


BAD_URLS = [
    ("", "http:// or https://"),
    ("hooks.example/x", "http:// or https://"),
    ("//8.8.8.8/x", "http:// or https://"),
    ("/x", "http:// or https://"),
    ("ftp://8.8.8.8/", "http:// or https://"),
    ("file:///etc/passwd", "http:// or https://"),
    ("gopher://8.8.8.8/", "http:// or https://"),
    ("http:///x", "contain a host"),
    ("http://user:password@8.8.8.8/", "credentials"),
    ("http://user@8.8.8.8/", "credentials"),
    ("http://8.8.8.8\\@127.0.0.1/", "credentials"),
    ("http://8.8.8.8:0/", "port 0"),
    ("http://8.8.8.8:70000/", "port 70000"),
    ("http://8.8.8.8:x/", "not a URL"),
    ("http://[::1/", "not a URL"),
    ("http://256.256.256.256/", "not a URL"),
    ("http://8.8.8.8/\0", "not a URL"),
    ("http://8.8.8.8/\r\nHost: x", "not a URL"),
    ("http://\ud800/", "not a URL"),
    ("http://8.8.8.8/\ud800", "not a URL"),
    ("http://a..b/", "does not resolve"),
    (f"http://{'a' * 64}.example/", "does not resolve"),
    ("http://8.8.8.8/" + "x" * MAX_URL_CHARS, "at most"),
]


@pytest.mark.parametrize(("url", "words"), BAD_URLS)
def test_a_bad_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidWebhook, match=words):
        check(url, ANY)


@given(
    url=st.one_of(st.text(), st.text().map("http://{}".format), st.text().map("http://1/{}".format))
)
def test_whatever_is_given_is_a_url_or_refused(url: str) -> None:
    try:
        parsed = parse(url)
    except InvalidWebhook:
        return
    assert parsed.scheme in ("http", "https")
    assert parsed.host
    assert not parsed.userinfo
