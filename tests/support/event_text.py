"""Server-sent events as they are written."""

import json
from typing import Any


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The name and the data of each, without comments."""
    blocks = [block.splitlines() for block in text.split("\n\n") if "event: " in block]
    parts = [dict(line.split(": ", 1) for line in block) for block in blocks]
    return [(part["event"], json.loads(part["data"])) for part in parts]
