"""``tool_choice: auto``: a model that writes calls of tools in the form of its chat template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient
from openai.lib.streaming.chat import ChatCompletionStreamState

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "clock")]
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>\n'
TEMPLATE = (
    "{{ tools[0]['function']['name'] }}<tool_call>"
    "{% for m in messages %}{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
    "{{ call['function']['name'] }} {{ call['function']['arguments']['zone'] }}"
    "{% endfor %}{% endfor %}"
)
Ask = Callable[..., Any]


@pytest.fixture
def writes(client: TestClient, data_dir: Path) -> Callable[[str], Ask]:
    """Requests to a model whose likeliest token has this text."""

    def make(text: str) -> Ask:
        folder = data_dir / "models" / "tiny"
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        stored = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = stored["model"]["vocab"]
        last = max(vocabulary, key=vocabulary.__getitem__)
        token_id = vocabulary.pop(last)
        vocabulary[text.replace(" ", "Ġ").replace("\n", "Ċ")] = token_id
        stored["model"]["merges"].pop()
        (folder / "tokenizer.json").write_text(json.dumps(stored))
        client.post("/models/tiny/unload")

        def ask(**body: Any) -> httpx2.Response:
            messages = [{"role": "user", "content": "the dog"}]
            asked = {"model": "tiny", "messages": messages, "tools": TOOLS}
            forced = {"logit_bias": {str(token_id): 100}, "max_completion_tokens": 2}
            return client.post("/v1/chat/completions", json={**asked, **forced, **body})

        return ask

    return make


def calls_of(message: openai.types.chat.ChatCompletionMessage) -> list[tuple[str, object]]:
    calls = [call for call in message.tool_calls or [] if call.type == "function"]
    assert len({call.id for call in calls}) == len(calls)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def whole(answer: httpx2.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    choices: list[Any] = openai.types.chat.ChatCompletion.model_validate(answer.json()).choices
    return choices


def streamed(answer: httpx2.Response) -> list[Any]:
    """What OpenAI's client makes of a stream."""
    state = ChatCompletionStreamState()
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            chunk = openai.types.chat.ChatCompletionChunk.model_validate_json(line[6:])
            state.handle_chunk(chunk)
    return [*state.current_completion_snapshot.choices]


def deltas_of_calls(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The parts of calls, each of which is alone in a chunk."""
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    calls = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert all(len(parts) == 1 for parts in calls)
    return [part for [part] in calls]


@pytest.mark.parametrize("choice", ["auto", None])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_calls_that_the_model_chooses(
    writes: Callable[[str], Ask], *, choice: str | None, is_streamed: bool
) -> None:
    read = streamed if is_streamed else whole
    ask = writes(f"I look.{CALL}!")
    for found in read(ask(tool_choice=choice, stop="!", n=2, stream=is_streamed)):
        assert found.finish_reason == "tool_calls"
        assert found.message.content == "I look."
        assert calls_of(found.message) == [("clock", {"zone": "UTC"})]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("may_call_many", [False, True])
def test_several_calls(
    writes: Callable[[str], Ask], *, may_call_many: bool, is_streamed: bool
) -> None:
    ask = writes(CALL.strip())
    answer = ask(parallel_tool_calls=may_call_many, stream=is_streamed)
    [found] = (streamed if is_streamed else whole)(answer)
    assert found.finish_reason == ("length" if may_call_many else "tool_calls")
    assert not found.message.content
    assert calls_of(found.message) == [("clock", {"zone": "UTC"})] * (1 + may_call_many)


def test_a_call_is_streamed_as_it_is_written(writes: Callable[[str], Ask]) -> None:
    """As OpenAI streams it: its id and its name, then its arguments in pieces."""
    zones = {"type": "array", "items": {"enum": [1, 22]}, "minItems": 3, "maxItems": 9}
    parameters = {"type": "object", "properties": {"zones": zones}, "required": ["zones"]}
    ask = writes('<tool_call>{"name": "clock", "arguments": {"zones": ')
    tool = {"name": "clock", "parameters": {**parameters, "additionalProperties": False}}
    asked = {"tools": [{"type": "function", "function": tool}], "parallel_tool_calls": False}
    asked |= {"max_completion_tokens": 200, "seed": 1, "temperature": 0}
    [expected] = whole(ask(**asked))
    answer = ask(**asked, stream=True)
    [found] = streamed(answer)
    assert found.finish_reason == expected.finish_reason == "tool_calls"
    assert calls_of(found.message) == calls_of(expected.message)
    first, *later = deltas_of_calls(answer)
    assert set(first) == {"index", "id", "type", "function"}
    assert first["function"] == {"name": "clock", "arguments": ""}
    assert len(later) > 3
    for part in later:
        assert set(part) == {"index", "function"}
        assert part["function"].keys() == {"arguments"}
        assert part["function"]["arguments"]


@pytest.mark.parametrize("limit", [{"max_completion_tokens": 1}, {"stop": "U"}])
def test_a_call_that_is_cut_has_no_valid_arguments(
    writes: Callable[[str], Ask], limit: dict[str, Any]
) -> None:
    ask = writes('<tool_call>{"name": "clock", "arguments": {"zone": "U')
    tool = {"name": "clock", "parameters": {"properties": {"zone": {"type": "string"}}}}
    tools = [{"type": "function", "function": tool}]
    [found], [read] = (
        whole(ask(tools=tools, **limit)),
        streamed(ask(tools=tools, **limit, stream=True)),
    )
    assert found.finish_reason == read.finish_reason == "length"
    for message in (found.message, read.message):
        [call] = message.tool_calls
        assert call.function.name == "clock"
        assert call.function.arguments.startswith('{"zone": "')


def test_text_is_text(writes: Callable[[str], Ask]) -> None:
    ask = writes("a <tool b!")
    [found] = whole(ask(stop="!"))
    assert (found.finish_reason, found.message.content) == ("stop", "a <tool b")
    assert found.message.tool_calls is None


def test_calls_and_their_results_are_sent_back(writes: Callable[[str], Ask]) -> None:
    ask = writes(f"{CALL}!")
    [found] = ask(stop="!").json()["choices"]
    [call] = found["message"]["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "noon"}
    messages = [{"role": "user", "content": "the dog"}, found["message"], result]
    answer = ask(messages=messages, stop="!")
    [again] = whole(answer)
    assert again.finish_reason == "tool_calls"
    as_text = "weather<tool_call>the dogclock UTCnoon"
    plain = ask(messages=[{"role": "user", "content": "the dogclock UTCnoon"}], stop="!")
    assert answer.json()["usage"] == plain.json()["usage"], as_text


def test_a_message_of_openais_stream_is_sent_back_as_it_is(writes: Callable[[str], Ask]) -> None:
    """Its client adds fields of its own."""
    ask = writes(f"{CALL}!")
    [found] = streamed(ask(stop="!", stream=True))
    message = found.message.model_dump(mode="json")
    assert {"index"} < message["tool_calls"][0].keys()
    message["tool_calls"][0]["function"]["parsed_arguments"] = {"zone": "UTC"}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "noon"}
    answer = ask(messages=[{"role": "user", "content": "the dog"}, message, result], stop="!")
    assert answer.status_code == 200, answer.text


def test_arguments_are_valid(writes: Callable[[str], Ask]) -> None:
    """The likeliest token, which begins a call, would break the schema if it came again."""
    parameters = {
        "type": "object",
        "properties": {"zone": {"type": "integer", "minimum": 0, "maximum": 3}},
        "required": ["zone"],
        "additionalProperties": False,
    }
    tool = {"name": "clock", "parameters": parameters}
    ask = writes('<tool_call>{"name": "clock", "arguments": {"zone": ')
    asked = {"tools": [{"type": "function", "function": tool}], "parallel_tool_calls": False}
    [found] = whole(ask(**asked, max_completion_tokens=200))
    assert found.finish_reason == "tool_calls"
    [(name, arguments)] = calls_of(found.message)
    assert name == "clock"
    assert arguments in [{"zone": zone} for zone in range(4)]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_parameters_may_refer_to_their_definitions(
    writes: Callable[[str], Ask], choice: str
) -> None:
    """As pydantic writes a nested model."""
    parameters = {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/Place"}},
        "$defs": {"Place": {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}}}
        | {"X": {"type": "integer"}},
    }
    tool = {"type": "function", "function": {"name": "clock", "parameters": parameters}}
    answer = writes(CALL)(tools=[TOOLS[0], tool], tool_choice=choice)
    assert answer.status_code == 200, answer.text


def test_a_format_of_the_text_is_refused(writes: Callable[[str], Ask]) -> None:
    answer = writes(CALL)(response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
