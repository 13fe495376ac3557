"""What a client sets of the chat template, with vLLM's names and defaults."""

import json
import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from app.api.schemas.bodies import optional

MAX_TEMPLATE_BYTES = 65_536
# what transformers takes itself, and what this service sets
RESERVED = (
    "^(self|conversations?|messages|tools|chat_template|add_generation_prompt|tokenize|padding"
    "|continue_final_message|sanitize_control_tokens|truncation|max_length|return_[a-z_]+"
    "|tokenizer_kwargs|(bos|eos|unk|sep|pad|cls|mask)_token|additional_special_tokens)$"
)
_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_BOTH = ("add_generation_prompt", "continue_final_message")
NOT_BOTH: dict[str, Any] = {
    "not": {"properties": {name: {"const": True} for name in _BOTH}, "required": [*_BOTH]}
}


def _checked(arguments: dict[str, Any]) -> dict[str, Any]:
    if taken := [name for name in arguments if re.match(RESERVED, name)]:
        raise ValueError(f"{', '.join(taken)}: set by this service: remove them")
    try:
        num_bytes = len(json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if num_bytes > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{num_bytes} bytes of JSON: expected at most {MAX_TEMPLATE_BYTES}")
    return arguments


TemplateArguments = Annotated[
    dict[Annotated[str, StringConstraints(pattern=_NAME)], Any],
    Field(
        max_length=64,
        json_schema_extra={
            "propertyNames": {"pattern": _NAME, "not": {"pattern": RESERVED}},
            "additionalProperties": True,
        },
    ),
    AfterValidator(_checked),
]


class TemplateFields(BaseModel):
    model_config = ConfigDict(json_schema_extra={"allOf": [NOT_BOTH]})

    add_generation_prompt: StrictBool | None = optional(
        "Whether the chat template begins a new message; true by default, and false with "
        "continue_final_message."
    )
    continue_final_message: StrictBool | None = optional(
        "Continue the last message in place of a new one."
    )
    chat_template_kwargs: TemplateArguments | None = optional(
        "Further variables for the chat template, such as enable_thinking; up to "
        f"{MAX_TEMPLATE_BYTES} bytes of JSON."
    )

    @field_validator("continue_final_message")
    @classmethod
    def _begins_none(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError("not supported with add_generation_prompt: set one of them to false")
        return value

    @property
    def template_options(self) -> dict[str, Any]:
        """As ``Chat`` has them."""
        begins = self.add_generation_prompt
        return {
            "add_generation_prompt": not self.continue_final_message if begins is None else begins,
            "continue_final_message": bool(self.continue_final_message),
            "chat_template_kwargs": self.chat_template_kwargs or {},
        }
