"""A conversation, with a service that answers with what it was asked."""

import json
import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import count
from typing import Any

import pytest
from rich.console import Console

from app.commands.chat import Conversation, WrappedWords
from app.commands.client import STREAM_TIMEOUT_S, Refused, ServiceClient


class Echo(ServiceClient):
    """Streams the model, the number of messages and the last one, word by word."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def events(
        self,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> Iterator[str]:
        assert (path, headers, timeout_s) == ("/v1/chat/completions", None, STREAM_TIMEOUT_S)
        assert body is not None
        if body["model"] == "unknown":
            raise Refused("no model named 'unknown'")
        self.bodies.append(json.loads(json.dumps(body)))
        messages = body["messages"]
        for word in (body["model"], f" {len(messages)} ", messages[-1]["content"], None):
            yield json.dumps({"choices": [{"delta": {"content": word}}], "usage": None})
        if body["stream_options"]["include_usage"]:
            yield json.dumps({"choices": [], "usage": {"completion_tokens": 4}})
        yield "[DONE]"


def reading(*lines: str) -> Callable[[], str]:
    left = list(lines)

    def read() -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return read


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=80)


def test_an_answer_is_streamed_and_becomes_part_of_the_conversation(console: Console) -> None:
    service = Echo()
    conversation = Conversation(service, "m", {"max_tokens": 4}, console)
    conversation.run(reading("hello [/b]", "", "and you?"))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[1]["content"] == "m 1 hello [/b]"
    assert conversation.messages[3]["content"] == "m 3 and you?"
    assert all(body["max_tokens"] == 4 and body["stream"] for body in service.bodies)
    assert isinstance(console.file, StringIO)
    assert "m 1 hello [/b]\n" in console.file.getvalue()


def test_a_mistyped_command_is_not_sent_and_a_refused_message_not_kept(console: Console) -> None:
    service = Echo()
    conversation = Conversation(service, "m", {}, console)
    conversation.run(reading("/compar n", "/comparen", "hello"))
    assert [body["messages"][-1]["content"] for body in service.bodies] == ["hello"]
    refused = Conversation(service, "unknown", {}, console)
    refused.run(reading("hello", "again"))
    assert refused.messages == []
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    for said in ("unknown command /compar. /compare OTHER sends", "no model named 'unknown'"):
        assert said in " ".join(shown.split())
    assert shown.endswith("\n\n")


def test_bye_ends_and_help_says_how(console: Console) -> None:
    service = Echo()
    Conversation(service, "m", {}, console).run(reading("/help", "hello", "/bye", "never"))
    assert [body["messages"][-1]["content"] for body in service.bodies] == ["hello"]
    assert isinstance(console.file, StringIO)
    assert "/bye or Ctrl-D ends" in " ".join(console.file.getvalue().split())


def test_an_answer_ends_with_its_tokens_per_second(console: Console) -> None:
    clock = count(100.0, 2.0)  # two seconds from the first token to the last one
    Conversation(Echo(), "m", {}, console, lambda: next(clock)).run(reading("hello"))
    assert isinstance(console.file, StringIO)
    assert "m 1 hello\n4 tokens, 1.5 tokens/s\n" in console.file.getvalue()


def test_another_model_answers_to_the_same_messages(console: Console) -> None:
    service = Echo()
    conversation = Conversation(service, "m", {}, console)
    conversation.run(reading("/compare n", "hello", "/compare n", "/compare unknown", "on"))
    assert [body["model"] for body in service.bodies] == ["m", "n", "m"]
    first, second, third = (body["messages"] for body in service.bodies)
    assert first == second
    assert [message["content"] for message in third] == ["hello", "m 1 hello", "on"]
    assert isinstance(console.file, StringIO)
    for shown in ("send a message first", "n 1 hello", "no model named 'unknown'"):
        assert shown in console.file.getvalue()


@pytest.mark.parametrize(
    ("deltas", "lines"),
    [
        (
            ["the moon is a cel", "estial", " body\nthat", " or", "bits"],
            ["the moon is a", "celestial body", "that orbits"],
        ),
        (["x" * 15, "y" * 20, " z"], ["x" * 15 + "y" * 20, "z"]),  # no line has room for it
        (["1234567890123456789", " next"], ["1234567890123456789", "next"]),
    ],
)
def test_words_of_an_answer_stay_whole_in_a_terminal(deltas: list[str], lines: list[str]) -> None:
    printed = StringIO()
    words = WrappedWords(Console(file=printed, width=20, force_terminal=True, highlight=False))
    for delta in deltas:
        words.show(delta)
    shown = printed.getvalue()
    while erased := re.search(r"\x1b\[(\d+)D\x1b\[0K", shown):
        before = shown[: erased.start()]
        shown = before[: len(before) - int(erased[1])] + shown[erased.end() :]
    assert [line.rstrip() for line in shown.split("\n")] == lines
