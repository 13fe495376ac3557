"""The format of an output in request bodies, as OpenAI has it."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StringConstraints

from app.api.schemas.bodies import Body, optional
from app.engine.grammar import MAX_SCHEMA_CHARS, ResponseFormatRefused
from app.engine.scheduling.sequence import ResponseFormat

SchemaName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextFormat(Body):
    type: Literal["text"] = Field(description="Any text.")


class JsonObjectFormat(Body):
    type: Literal["json_object"] = Field(description="A JSON object.")


class JsonSchemaSpec(Body):
    name: SchemaName = Field(description="Has no effect here.")
    description: str | None = optional("Has no effect here.")
    schema_: dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        description=f"JSON schema of up to {MAX_SCHEMA_CHARS} characters; any object by default. "
        "Keywords that cannot be enforced are rejected.",
    )
    strict: StrictBool | None = optional("Has no effect: the schema is always enforced.")


class JsonSchemaFormat(Body):
    type: Literal["json_schema"] = Field(description="JSON that matches a schema.")
    json_schema: JsonSchemaSpec = Field(description="The schema.")


AnyFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def without_format_tags(loc: Sequence[int | str]) -> list[int | str]:
    """Remove the union tag that pydantic adds behind the field to the location of an error."""
    return [part for before, part in pairwise(["", *loc]) if before != "response_format"]


def response_format(body: AnyFormat | None) -> ResponseFormat | None:
    """Return the engine's format, None for any text. Raises ``ResponseFormatRefused``."""
    if body is None or isinstance(body, TextFormat):
        return None
    if isinstance(body, JsonObjectFormat):
        return ResponseFormat("json_object")
    spec = body.json_schema
    schema = {"type": "object"} if spec.schema_ is None else spec.schema_
    try:
        text = json.dumps(schema)
    except (RecursionError, ValueError) as error:
        raise ResponseFormatRefused(f"the schema is not valid JSON: {error}") from error
    return ResponseFormat("json_schema", text, spec.name, spec.description, spec.strict)
