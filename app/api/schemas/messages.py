"""Messages of a chat, with OpenAI's names, and the types of text in request bodies."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.api.schemas.bodies import Body, Ignored, documented, optional, with_field
from app.api.schemas.response_format import SchemaName
from app.api.schemas.tools import MAX_TOOLS


def _encodable(text: str) -> str:
    text.encode()  # pydantic accepts lone surrogates in a union
    return text


AnyText = Annotated[str, AfterValidator(_encodable)]
Text = Annotated[AnyText, StringConstraints(min_length=1)]


def expected(message: str) -> WrapValidator:
    """Report one error with this message, in place of one per member of a union."""

    def check(value: object, handler: Callable[[object], object]) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", message) from None

    return WrapValidator(check)


Nothing = Annotated[list[Any], Field(max_length=0)]
Unsupported = Annotated[None, expected("not supported: remove it from the request")]

_HAS_CALLS = with_field("tool_calls", {"minItems": 1})
_IS_ARRAY = with_field("tool_calls", {"type": "array"})
_HAS_CONTENT = with_field("content", {"not": {"type": "null"}})


class TextPart(Body):
    type: Literal["text"] = Field(description="Type of the part.")
    text: AnyText = Field(description="Text of the part.")


class GivenFunction(Body):
    name: SchemaName = Field(description="Name of the function.")
    arguments: AnyText = Field(
        description="Arguments as JSON; the chat template receives JSON objects as objects."
    )
    parsed_arguments: Ignored = None  # by OpenAI's client, which sends its own messages back

    def as_template_input(self) -> dict[str, Any]:
        """An object as one: chat templates have it so. A call that was cut short is no JSON."""
        try:
            parsed = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else self.arguments
        return {"name": self.name, "arguments": arguments}


class GivenCall(Body):
    """A tool call of an earlier response."""

    id: AnyText = Field(description="Id of the call.")
    index: Ignored = None  # of a stream
    type: Literal["function"] = documented("function", "Type of the tool.")
    function: GivenFunction = Field(description="Called function and its arguments.")

    def as_template_input(self) -> dict[str, Any]:
        return {"id": self.id, "type": self.type, "function": self.function.as_template_input()}


class Message(Body):
    """A message. Null fields of an earlier response are accepted, so that it can be sent back."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [_HAS_CONTENT, {**_HAS_CALLS, "allOf": [_IS_ARRAY]}],
            "if": {**_HAS_CALLS, "allOf": [_IS_ARRAY]},
            "then": {"properties": {"role": {"const": "assistant"}}},
        }
    )

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Role of the author; tool: the result of a function call."
    )
    tool_calls: Annotated[list[GivenCall], Field(max_length=MAX_TOOLS)] | None = optional(
        "Tool calls of the assistant, for the chat template."
    )
    content: Annotated[
        AnyText | list[TextPart] | None,
        expected('expected a string or a list of parts {"type": "text", "text": "..."}'),
    ] = Field(
        default=None,
        validate_default=True,
        description="Text of the message, or its parts; null only with tool_calls.",
    )
    tool_call_id: AnyText | None = optional("Id of the tool call that this message answers.")
    name: AnyText | None = optional("Name of the author, for the chat template.")
    annotations: Nothing | None = optional("Must be empty or null.")
    audio: Unsupported = optional("Must be null.")
    parsed: Ignored = None  # by OpenAI's client
    function_call: Unsupported = optional("Must be null.")
    refusal: Unsupported = optional("Must be null.")

    @field_validator("tool_calls")
    @classmethod
    def _of_an_assistant(
        cls, calls: list[GivenCall] | None, info: ValidationInfo
    ) -> list[GivenCall] | None:
        if calls and info.data.get("role") not in (None, "assistant"):
            raise ValueError("only allowed in messages of the assistant")
        return calls

    @field_validator("content")
    @classmethod
    def _says_something(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        if content is None and not info.data.get("tool_calls"):
            raise ValueError("expected a string, because there are no tool_calls")
        return content

    def as_template_input(self) -> dict[str, Any]:
        """Return what chat templates expect. Developer messages become system messages."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content if isinstance(self.content, list) else [self.content or ""]
        text = "\n".join(part if isinstance(part, str) else part.text for part in parts)
        others = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": [call.as_template_input() for call in self.tool_calls or ()],
        }
        return {
            "role": role,
            "content": text,
            **{key: each for key, each in others.items() if each},
        }
