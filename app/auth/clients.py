"""How requests without an API key are told apart, for shares of what all clients use."""

from contextvars import ContextVar
from ipaddress import IPv6Address, ip_address, ip_network

from app.auth.keys import caller

_IPV6_PREFIX = 64  # a client may have all addresses of such a network

# As uvicorn has it: behind a proxy that it trusts, the address that X-Forwarded-For names.
client_address: ContextVar[str | None] = ContextVar("client_address", default=None)


def calling_client() -> str:
    """The client of the current request, as part of a message."""
    key = caller.get()
    if key is not None:
        return f"the key {key.name!r}"
    return f"clients without a key at {_network(client_address.get() or 'this machine')}"


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket, or what a proxy has made of it
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((int(parsed), _IPV6_PREFIX), strict=False))
    return str(parsed)
