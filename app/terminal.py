"""What ``--json`` prints. Light, so that commands which need no model start at once."""

import json
from typing import Any

from rich.console import Console


def print_json(data: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    Console().print_json(json.dumps(data))
