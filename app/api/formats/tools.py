"""Calls of tools: a JSON schema that an output fulfils, and the call that its text is then.

An output that must call one function is its arguments. With several functions to choose from, it is
an object with a name and arguments. Where the model may choose text instead, calls are found in it.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from app.api.schemas.openai import ChatBody
from app.api.schemas.tools import CalledFunction, FunctionSpec, NamedTool, ToolCall
from app.engine.sampling.text import check_template
from app.engine.scheduling.sequence import RequestRefused, ResponseFormat
from app.generation.calls import call_form, call_grammar
from app.generation.generator import Host
from app.generation.output import CallPart, Delta, Output
from app.generation.request import Served, ServedElsewhere

MessageDelta = dict[Literal["role", "content", "tool_calls"], Any]  # what is new of a message


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
    def response_format(self) -> ResponseFormat:
        schema = _any_call(self.functions) if self.only is None else _parameters(self.only)
        return ResponseFormat("json_schema", json.dumps(schema), "tool_call", param="tools")

    def call(self, text: str) -> ToolCall:
        """The call that a text is. One that was cut short has its text as the arguments."""
        name, arguments = "" if self.only is None else self.only.name, text
        if self.only is None:
            with suppress(ValueError, LookupError):
                call = json.loads(text)
                name, arguments = call["name"], json.dumps(call["arguments"])
        return _new_call(name, arguments)

    def deltas(self, delta: Delta, *, is_first: bool) -> list[MessageDelta]:
        """What is new of the call; empty if nothing is to be sent yet.

        The arguments of an only function are streamed as they grow. Which of several functions is
        called is known at the end, so such a call is one delta.
        """
        if self.only is None:
            return [] if delta.output is None else [_whole(self.call(delta.output.text))]
        if is_first:
            return [_whole(self.call(delta.text))]
        return [_of_calls(_part(CallPart(0, None, None, delta.text)))] if delta.text else []


def leaves_choice(body: ChatBody) -> bool:
    """Whether the model chooses between text and calls."""
    return bool(body.tools) and body.tool_choice in (None, "auto")


def check_chat(body: ChatBody, host: Host) -> None:
    """Raise ``NoChatTemplate``, or ``ToolsRefused`` if the calls of a model cannot be found.

    A tokenizer that is not known yet is not checked.
    """
    if host.tokenizer is not None:
        check_template(host.tokenizer)
    if not leaves_choice(body):
        return
    if (reason := _cannot_find_calls(host)) is not None:
        raise ToolsRefused(
            "tool_choice", f"tool_choice: `auto` {reason}, or use `required` or `none`"
        )
    if (field := _format_field(body)) is not None:
        raise ToolsRefused(
            field,
            f"{field}: not supported together with tool_choice `auto`: leave it out, or use "
            "tool_choice `none`",
        )


def _format_field(body: ChatBody) -> str | None:
    """The field that asks for a format of the text, if one does."""
    if body.structured_outputs is not None:
        return "structured_outputs"
    is_text = body.response_format is None or body.response_format.type == "text"
    return None if is_text else "response_format"


def _cannot_find_calls(host: Host) -> str | None:
    """Why, and what to do; None if it can."""
    if host.is_external:
        return "is not supported for a model of another server: name a function"
    if host.vllm is not None and not host.vllm.finds_calls:
        return (
            "requires a tool-call parser in vLLM: add `--enable-auto-tool-choice "
            "--tool-call-parser NAME` to SLEB_VLLM_ARGS, name a function"
        )
    if host.vllm is None and host.tokenizer is not None and call_form(host.tokenizer) is None:
        return (
            "requires a chat template with tool calls in a supported form, which this model does "
            "not have: name a function"
        )
    return None


def chosen_format(served: Served, body: ChatBody) -> ResponseFormat | None:
    """The format of an output whose calls the model chooses; None if it is not enforced here."""
    if isinstance(served, ServedElsewhere) or (form := call_form(served.tokenizer)) is None:
        return None
    may_call_many = body.parallel_tool_calls is not False
    within = call_grammar(served.tokenizer, form, may_call_many=may_call_many)
    if within is None:
        return None
    schema = json.dumps(_any_call([tool.function for tool in body.tools or ()]))
    return ResponseFormat("json_schema", schema, within=within, param="tools")


def tool_use(body: ChatBody) -> ToolUse | None:
    """The functions of which an output must call one; None if it need not.

    Raises ``ToolsRefused``.
    """
    choice, tools = body.tool_choice, [tool.function for tool in body.tools or ()]
    try:
        json.loads(json.dumps([tool.parameters for tool in tools]))
    except (RecursionError, ValueError) as error:
        raise ToolsRefused(
            "tools", f"tools: the parameters are not a valid JSON schema: {error}"
        ) from error
    if choice in (None, "none", "auto"):
        return None
    if not tools:
        raise ToolsRefused("tool_choice", "tool_choice: expected tools in the request")
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.name == choice.function.name]
        if not tools:
            raise ToolsRefused("tool_choice", "tool_choice: expected the name of one of the tools")
    if (field := _format_field(body)) is not None:
        raise ToolsRefused(
            field,
            f"{field}: not supported together with a required tool call: the tool's parameters "
            "define the format",
        )
    return ToolUse(tools)


def _parameters(function: FunctionSpec) -> dict[str, Any]:
    return {"type": "object"} if function.parameters is None else function.parameters


def _any_call(functions: Sequence[FunctionSpec]) -> dict[str, Any]:
    return {"anyOf": [_call(function, f"#/anyOf/{at}") for at, function in enumerate(functions)]}


def _call(function: FunctionSpec, place: str) -> dict[str, Any]:
    """The schema of a call, at this place of another one, where its references point as well."""

    def moved(schema: dict[str, Any]) -> dict[str, Any]:
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            schema["$ref"] = f"{place}/properties/arguments{reference[1:]}"
        return schema

    arguments = json.loads(json.dumps(_parameters(function)), object_hook=moved)
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def found_calls(output: Output) -> list[ToolCall] | None:
    """The calls that another server has found in the output; None if there are none."""
    return [_new_call(call.name or "", call.arguments, call.id) for call in output.calls] or None


def text_and_calls(delta: Delta) -> list[MessageDelta]:
    """What is new of both. Clients expect one part of a call in a delta."""
    texts: list[MessageDelta] = [{"content": delta.text}] if delta.text else []
    return texts + [_of_calls(_part(part)) for part in delta.calls]


def _of_calls(part: dict[str, Any]) -> MessageDelta:
    return {"tool_calls": [part]}


def _part(part: CallPart) -> dict[str, Any]:
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    call = _new_call(part.name, part.arguments, part.id)
    return {"index": part.index, **call.model_dump()}


def _new_call(name: str, arguments: str, id_: str | None = None) -> ToolCall:
    function = CalledFunction(name=name, arguments=arguments)
    return ToolCall(id=id_ or f"call_{uuid4().hex[:24]}", function=function)


def _whole(call: ToolCall) -> MessageDelta:
    return _of_calls({"index": 0, **call.model_dump()})
