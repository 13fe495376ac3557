"""The URLs and addresses that webhooks may be sent to.

A host is checked by every address that it resolves to, however it is written: the resolver also
reads 0x7f.1 or 2130706433. The sender must connect to the addresses that were checked here, as a
second lookup may return others (DNS rebinding).
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx2

MAX_URL_CHARS = 2048

Address = IPv4Address | IPv6Address
AddressRule = Callable[[Address], bool]
Resolver = Callable[[str, int], Sequence[Address]]

_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291: IANA has allocated no other space
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_RELAYS = IPv4Network("192.88.99.0/24")  # RFC 7526: 6to4 relays, which no one should use
_TRANSIENT = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)


class InvalidWebhook(ValueError):
    """Messages cannot, or may not, be sent to this URL."""

    param = "webhook.url"


class UnknownHost(ConnectionError):
    """The host does not resolve. ``is_transient`` if the resolver failed."""

    def __init__(self, host: str, reason: str, *, is_transient: bool) -> None:
        super().__init__(f"the host {host[:256]!r} does not resolve: {reason}")
        self.is_transient = is_transient


class WebhooksOff(ValueError):
    """The service has no secret to sign messages with."""

    param = "webhook"

    def __init__(self) -> None:
        super().__init__(
            "webhooks require a secret: set SLEB_WEBHOOK_SECRET to whsec_ followed by the "
            "base64 of 24 to 64 random bytes, or submit the job without a webhook"
        )


def parse(url: str) -> httpx2.URL:
    """Parse and check the URL. Raises ``InvalidWebhook``."""
    if len(url) > MAX_URL_CHARS:
        raise InvalidWebhook(f"the URL has {len(url)} characters: expected at most {MAX_URL_CHARS}")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidWebhook(f"not a URL: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.host:
        raise InvalidWebhook("the URL must start with http:// or https:// and contain a host")
    if parsed.userinfo:
        raise InvalidWebhook(
            "the URL must not contain credentials: messages are signed, so that receivers "
            "can verify them"
        )
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise InvalidWebhook(f"invalid port {parsed.port}: expected 1 to 65535")
    return parsed


def resolve(host: str, port: int) -> Sequence[Address]:
    """Return all addresses of the host, in the order to try them. Raises ``UnknownHost``."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        is_transient = error.errno in _TRANSIENT
        raise UnknownHost(host, str(error.strerror), is_transient=is_transient) from error
    except UnicodeError as error:  # a label that is empty or too long for DNS
        raise UnknownHost(host, "not a host name", is_transient=False) from error
    return tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in addresses))


def allowed_addresses(
    url: httpx2.URL, is_allowed: AddressRule, resolver: Resolver = resolve
) -> Sequence[Address]:
    """Return the addresses to connect to.

    Raises ``UnknownHost``, or ``InvalidWebhook`` if one address is not allowed.
    """
    host = url.raw_host.decode("ascii")
    addresses = resolver(host, url.port or _PORTS[url.scheme])
    if not all(is_allowed(address) for address in addresses):
        raise InvalidWebhook(
            f"the host {host[:256]!r} has a non-public address: use a public host, or set "
            "SLEB_WEBHOOK_ALLOW_PRIVATE=true"
        )
    return addresses


def check(url: str, is_allowed: AddressRule) -> None:
    """Refuse URLs to which nothing can be delivered. Raises ``InvalidWebhook``.

    A host that does not exist is refused. A host whose lookup fails for now is accepted, as it is
    looked up and checked again before each message.
    """
    try:
        allowed_addresses(parse(url), is_allowed)
    except UnknownHost as error:
        if not error.is_transient:
            raise InvalidWebhook(str(error)) from error


def address_rule(*, is_private_allowed: bool) -> AddressRule:
    """Return the rule of a service that may, or may not, send to private addresses."""
    return (lambda _address: True) if is_private_allowed else is_public


def is_public(address: Address) -> bool:
    """Whether the address, and an IPv4 address within it, is public unicast."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in _RELAYS
    if (embedded := _embedded(address)) is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and address.is_global


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that packets may be routed to: mapped, 6to4 or NAT64."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
