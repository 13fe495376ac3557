"""Where webhooks may go: URLs as they are read, and addresses as they are judged.

A name is judged by every address that it resolves to, however it is spelt: the resolver also reads
0x7f.1 or 2130706433. Whoever connects has to use the very addresses that were judged here.
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

MAX_URL_CHARS = 2048

Address = IPv4Address | IPv6Address
AddressRule = Callable[[Address], bool]
Resolver = Callable[[str, int], Sequence[Address]]

_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291; IANA has given out no other space
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_TRANSIENT = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)


class InvalidWebhook(ValueError):
    """Nothing can, or may, be sent to this URL."""

    param = "webhook.url"


class UnknownHost(ConnectionError):
    """The host's name does not resolve; ``is_transient`` if it is the resolver that failed."""

    def __init__(self, host: str, reason: str, *, is_transient: bool) -> None:
        super().__init__(f"the host {host[:256]!r} does not resolve: {reason}")
        self.is_transient = is_transient


class WebhooksOff(ValueError):
    """The service has no secret to sign messages with."""

    param = "webhook"

    def __init__(self) -> None:
        super().__init__(
            "this service signs what it sends and has no secret for that: start it with "
            "SLEB_WEBHOOK_SECRET, which is whsec_ and the base64 of 24 to 64 random bytes, or "
            "submit the job without webhook"
        )


def parse(url: str) -> httpx2.URL:
    """The URL as it will be connected to. Raises ``InvalidWebhook``."""
    if len(url) > MAX_URL_CHARS:
        raise InvalidWebhook(f"the URL has {len(url)} characters, at most {MAX_URL_CHARS} may be")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise InvalidWebhook(f"this is not a URL: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.host:
        raise InvalidWebhook("the URL must begin with http:// or https:// and name a host")
    if parsed.userinfo:
        raise InvalidWebhook(
            "the URL must not contain credentials: messages are signed, and a receiver verifies "
            "the signature"
        )
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise InvalidWebhook(f"there is no port {parsed.port}")
    return parsed


def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of the host, in the order to try them. Raises ``UnknownHost``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        is_transient = error.errno in _TRANSIENT
        raise UnknownHost(host, str(error.strerror), is_transient=is_transient) from error
    except UnicodeError as error:  # a label that is empty or too long for DNS
        raise UnknownHost(host, "this is no name of a host", is_transient=False) from error
    return tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))


def allowed_addresses(
    url: httpx2.URL, is_allowed: AddressRule, resolver: Resolver = resolve
) -> Sequence[Address]:
    """Those to connect to. Raises ``UnknownHost``, or ``InvalidWebhook`` if one is not allowed."""
    host = url.raw_host.decode("ascii")
    addresses = resolver(host, url.port or _PORTS[url.scheme])
    if not all(is_allowed(address) for address in addresses):
        raise InvalidWebhook(
            f"the host {host[:256]!r} has an address that is not public: name another, or start "
            "the service with SLEB_WEBHOOK_ALLOW_PRIVATE=true if it may send into its own network"
        )
    return addresses


def check(url: str, is_allowed: AddressRule) -> None:
    """Refuse what can never be delivered. Raises ``InvalidWebhook``.

    That includes a name that does not exist: it is misspelt, most likely. One that cannot be looked
    up now is taken; it is looked up, and judged, before anything is sent.
    """
    try:
        allowed_addresses(parse(url), is_allowed)
    except UnknownHost as error:
        if not error.is_transient:
            raise InvalidWebhook(str(error)) from error


def address_rule(*, is_private_allowed: bool) -> AddressRule:
    """The rule of a service that may, or may not, send into its own network."""
    return _any_address if is_private_allowed else is_public


def _any_address(_address: Address) -> bool:
    return True


def is_public(address: Address) -> bool:
    """Whether it is a unicast address of the public internet, itself and whatever it embeds."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if (embedded := _embedded(address)) is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and address.is_global


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a packet to it may end at: mapped, 6to4 or NAT64."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
