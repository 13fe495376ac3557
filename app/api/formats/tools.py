"""Calls of tools: a JSON schema that an output fulfils, and the call that its text is then.

An output that must call one function is its arguments. With several functions to choose from, it is
an object with a name and arguments. Where the model may choose text instead, vLLM finds its calls.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.api.schemas.openai import ChatBody
from app.api.schemas.response_format import JsonSchemaFormat, JsonSchemaSpec
from app.api.schemas.tools import CalledFunction, FunctionSpec, NamedTool
from app.engine.scheduling.sequence import RequestRefused
from app.generation.request import Served, ServedElsewhere


class ToolsRefused(RequestRefused):
    """The tools cannot be offered in that way."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class ToolUse:
    """The functions of which each output calls one."""

    functions: Sequence[FunctionSpec]

    @property
    def only(self) -> FunctionSpec | None:
        """The function, if there is only one."""
        return self.functions[0] if len(self.functions) == 1 else None

    @property
    def response_format(self) -> JsonSchemaFormat:
        every = {"anyOf": [*map(_call, self.functions)]}
        schema = every if self.only is None else _parameters(self.only)
        spec = JsonSchemaSpec(name="tool_call", schema=schema)
        return JsonSchemaFormat(type="json_schema", json_schema=spec)

    def called(self, text: str) -> CalledFunction:
        """The call that a text is. One that was cut short has its text as the arguments."""
        if self.only is not None:
            return CalledFunction(name=self.only.name, arguments=text)
        try:
            call = json.loads(text)
            return CalledFunction(name=call["name"], arguments=json.dumps(call["arguments"]))
        except (ValueError, LookupError):
            return CalledFunction(name="", arguments=text)


def leaves_choice(body: ChatBody) -> bool:
    """Whether the model chooses between text and calls."""
    return bool(body.tools) and body.tool_choice in (None, "auto")


def check_choice(served: Served) -> None:
    """Raise ``ToolsRefused`` if the model cannot choose: only a parser of vLLM finds its calls."""
    in_vllm = served.vllm if isinstance(served, ServedElsewhere) else None
    if in_vllm is None:
        raise ToolsRefused(
            "tool_choice",
            "tool_choice: whether to call a tool cannot be left to the model here: name a "
            "function, or send `required`, or `none`",
        )
    if not in_vllm.finds_calls:
        raise ToolsRefused(
            "tool_choice",
            "tool_choice: whether to call a tool can be left to this model only if its vLLM has a "
            "parser of calls: add `--enable-auto-tool-choice --tool-call-parser NAME` to "
            "SLEB_VLLM_ARGS, or name a function, or send `required`, or `none`",
        )


def tool_use(body: ChatBody) -> ToolUse | None:
    """The functions of which an output must call one; None if it need not.

    Raises ``ToolsRefused``.
    """
    choice, tools = body.tool_choice, [tool.function for tool in body.tools or ()]
    try:
        json.dumps([tool.parameters for tool in tools])
    except (RecursionError, ValueError) as error:
        raise ToolsRefused("tools", f"tools: a schema of parameters is no JSON: {error}") from error
    if choice in (None, "none", "auto"):
        return None
    if not tools:
        raise ToolsRefused("tool_choice", "tool_choice: expected tools to choose from")
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.name == choice.function.name]
        if not tools:
            raise ToolsRefused("tool_choice", "tool_choice: expected the name of one of the tools")
    if body.response_format is not None and body.response_format.type != "text":
        raise ToolsRefused(
            "response_format", "response_format: a call of a tool has the format of its parameters"
        )
    return ToolUse(tools)


def _parameters(function: FunctionSpec) -> dict[str, Any]:
    return {"type": "object"} if function.parameters is None else function.parameters


def _call(function: FunctionSpec) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": _parameters(function)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
