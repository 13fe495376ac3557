"""Fields of bodies with a default and a description."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field


def documented(default: Any, description: str, schema: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - of any type
    """A field with a default. ``schema`` documents a range, which the spec or the engine checks."""
    extra = None if schema is None else dict(schema)
    return Field(default=default, description=description, json_schema_extra=extra)


def optional(description: str, schema: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - of any type
    """A field that is null by default."""
    return documented(None, description, schema)


def kind(name: str) -> Any:  # noqa: ANN401 - a literal
    """The field ``object`` of a body of this kind."""
    return Field(default=name, description="The kind of this object.")
