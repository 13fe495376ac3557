"""Tools of chat completions: a call of a tool is JSON by the schema of its parameters."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from jsonschema import validate

WEATHER = {
    "type": "object",
    "properties": {"days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["days", "unit"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock", "parameters": CLOCK}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}


def chat(client: TestClient, **body: Any) -> Any:
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "the dog"}], "tools": TOOLS}
    limit = {"max_completion_tokens": 120, "temperature": 1, "seed": 3}
    return client.post("/v1/chat/completions", json={**ask, **limit, **body})


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_call_has_valid_arguments(client: TestClient, choice: Any) -> None:
    answer = chat(client, tool_choice=choice, n=4)
    assert answer.status_code == 200, answer.text
    finished = [one for one in answer.json()["choices"] if one["finish_reason"] == "tool_calls"]
    assert finished, answer.text
    for one in finished:
        assert one["message"]["content"] is None
        [call] = one["message"]["tool_calls"]
        assert choice == "required" or call["function"]["name"] == "weather"
        validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_stream_has_the_same_call(client: TestClient, choice: Any) -> None:
    [whole] = chat(client, tool_choice=choice).json()["choices"]
    lines = chat(client, tool_choice=choice, stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    [expected] = whole["message"]["tool_calls"]
    assert calls[0]["function"]["name"] == expected["function"]["name"]
    assert (
        "".join(call["function"]["arguments"] for call in calls)
        == (expected["function"]["arguments"])
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_openais_client_reads_a_call(client: TestClient) -> None:
    answer = chat(client, tool_choice=NAMED).json()
    read = openai.types.chat.ChatCompletion.model_validate(answer)
    [call] = read.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "tool_choice"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED, "response_format": {"type": "json_object"}}, "response_format"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_promised_is_refused_by_name(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    answer = chat(client, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_none_is_text(client: TestClient) -> None:
    [choice] = chat(client, tool_choice="none").json()["choices"]
    assert choice["message"]["content"]
    assert choice["message"]["tool_calls"] is None


def test_the_template_has_earlier_calls_and_their_results(
    client: TestClient, data_dir: Path
) -> None:
    """Their arguments are an object there."""
    template = (
        "{% for m in messages %}{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
        "{{ call['function']['name'] }} {{ call['function']['arguments']['zone'] }}"
        "{% endfor %}{% endfor %}"
    )
    (data_dir / "models" / "tiny" / "chat_template.jinja").write_text(template)
    arguments = json.dumps({"zone": "CET"})
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    client.post("/models/tiny/unload")
    asked = chat(client, messages=messages, tool_choice="none").json()
    same = {"model": "tiny", "prompt": "the dogclock CETnoon"}
    plain = client.post("/v1/completions", json=same).json()
    assert asked["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
