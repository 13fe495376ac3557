"""What a service that runs says of itself to anybody, without a key."""

import httpx2

_ANSWER_S = 2


def asked(host: str, number: int, path: str) -> str | None:
    """The text at this path of what listens on the port. None if nothing there speaks HTTP."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - any address
    place = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
    for scheme in ("http", "https"):
        try:
            # nothing secret is sent: whose certificate it is does not matter here
            return httpx2.get(f"{scheme}://{place}{path}", timeout=_ANSWER_S, verify=False).text
        except httpx2.HTTPError:
            continue
    return None
