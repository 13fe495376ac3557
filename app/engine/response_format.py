"""The format that an output is to have: any JSON object, or JSON by a schema. A plain value."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ResponseFormat:
    """As OpenAI has it. ``name``, ``description`` and ``strict`` are for other servers only."""

    type: Literal["json_object", "json_schema"]
    schema: str = '{"type":"object"}'  # JSON
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
