"""Calls of tools in OpenAI's format: whole, and as deltas of a stream."""

from typing import Any, Literal
from uuid import uuid4

from app.api.formats.tools import ToolUse
from app.api.schemas.tools import CalledFunction, ToolCall
from app.generation.output import CallPart, Delta, Output


class CallStreams:
    """The calls that the outputs of one request are, one each.

    The arguments of an only function are streamed as they grow. Which of several functions is
    called is known at the end, so such a call is one delta.
    """

    def __init__(self, tools: ToolUse) -> None:
        self._tools = tools
        self._begun: set[int] = set()  # indices of outputs whose call has been named

    def whole(self, text: str) -> ToolCall:
        return ToolCall(id=_new_id(), function=self._tools.called(text))

    def delta(self, delta: Delta) -> dict[Literal["role", "content", "tool_calls"], Any]:
        """Empty if nothing is to be sent yet."""
        if self._tools.only is None:
            return {} if delta.output is None else _first(self.whole(delta.output.text))
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            return _first(self.whole(delta.text))
        if not delta.text:
            return {}
        return {"tool_calls": [{"index": 0, "function": {"arguments": delta.text}}]}


def found_calls(output: Output) -> list[ToolCall] | None:
    """The calls that another server has found in the output; None if there are none."""
    calls = [
        ToolCall(
            id=call.id or _new_id(),
            function=CalledFunction(name=call.name or "", arguments=call.arguments),
        )
        for call in output.calls
    ]
    return calls or None


def text_and_calls(delta: Delta) -> dict[Literal["role", "content", "tool_calls"], Any]:
    """What is new of both; empty if nothing is."""
    message: dict[Literal["role", "content", "tool_calls"], Any] = {}
    if delta.text:
        message["content"] = delta.text
    if delta.calls:
        message["tool_calls"] = [*map(_part, delta.calls)]
    return message


def _part(part: CallPart) -> dict[str, Any]:
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {
        "index": part.index,
        "id": part.id or _new_id(),
        "type": "function",
        "function": function,
    }


def _new_id() -> str:
    return f"call_{uuid4().hex[:24]}"


def _first(call: ToolCall) -> dict[Literal["role", "content", "tool_calls"], Any]:
    return {"tool_calls": [{"index": 0, **call.model_dump()}]}
