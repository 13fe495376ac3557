"""What commands print: JSON and times. Light, so that those which need no model start at once."""

import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console


def print_json(data: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    Console().print_json(json.dumps(data))


def local_time(seconds: float) -> str:
    """Seconds since 1970 in the time zone of this machine, as every command shows times."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
