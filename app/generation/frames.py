"""Messages between this service and its processes: JSON behind its length in four bytes, as
connections of ``multiprocessing`` have it. Imports nothing that takes time.
"""

import json
from typing import Any

LENGTH_BYTES = 4


def framed(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(LENGTH_BYTES) + body
