"""The format of an output in request bodies, as OpenAI has it."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, StringConstraints, model_validator

from app.api.schemas.bodies import Body, optional
from app.engine.grammar import MAX_SCHEMA_CHARS, ResponseFormatRefused
from app.engine.scheduling.sequence import ResponseFormat

MAX_CHOICES = 1024
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


def _parsed(schema: object) -> object:
    """A schema may be a text, as in vLLM."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


ShortText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SCHEMA_CHARS)]


class StructuredOutputs(Body):
    """The format of an output, as vLLM has it: exactly one of the fields is set."""

    json_: Annotated[dict[str, Any], BeforeValidator(_parsed)] | None = Field(
        default=None, alias="json", description="JSON schema that the output matches."
    )
    regex: ShortText | None = optional("Regular expression that the whole output matches.")
    choice: Annotated[list[ShortText], Field(min_length=1, max_length=MAX_CHOICES)] | None = (
        optional("Texts of which the output is one.")
    )
    grammar: ShortText | None = optional("Grammar of the output, in the syntax of Lark or GBNF.")
    json_object: Literal[True] | None = optional("The output is a JSON object.")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("expected one of json, regex, choice, grammar and json_object")
        return self

    @property
    def engine_format(self) -> ResponseFormat:
        """Raises ``ResponseFormatRefused``."""
        given: dict[Any, Any] = self.model_dump(exclude_none=True, by_alias=True)
        [(kind, value)] = given.items()
        param = f"structured_outputs.{kind}"
        if kind == "json_object":
            return ResponseFormat(kind, param=param)
        if kind == "json":
            return ResponseFormat("json_schema", _dumped(value, param), "output", param=param)
        return ResponseFormat(kind, json.dumps(value) if kind == "choice" else value, param=param)


def response_format(
    body: AnyFormat | None, structured: StructuredOutputs | None = None
) -> ResponseFormat | None:
    """Return the engine's format, None for any text. Raises ``ResponseFormatRefused``."""
    is_text = body is None or isinstance(body, TextFormat)
    if structured is not None and not is_text:
        raise ResponseFormatRefused(
            "structured_outputs: not supported together with another format: remove one of them",
            "structured_outputs",
        )
    if structured is not None:
        return structured.engine_format
    if body is None or isinstance(body, TextFormat):
        return None
    if isinstance(body, JsonObjectFormat):
        return ResponseFormat("json_object")
    spec = body.json_schema
    schema = {"type": "object"} if spec.schema_ is None else spec.schema_
    text = _dumped(schema, "response_format")
    return ResponseFormat("json_schema", text, spec.name, spec.description, spec.strict)


def _dumped(schema: Mapping[str, Any], param: str) -> str:
    try:
        return json.dumps(schema)
    except (RecursionError, ValueError) as error:
        raise ResponseFormatRefused(f"the schema is not valid JSON: {error}", param) from error
