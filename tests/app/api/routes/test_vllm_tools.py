"""``tool_choice: auto`` over processes of this service that speak vLLM's routes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from app.config import ServeSettings
from tests.support.serving import LocalClient, local_api
from tests.support.vllm_program import run_by

WEATHER = {
    "type": "object",
    "properties": {"days": {"type": "integer"}},
    "required": ["days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
PARSER = "--enable-auto-tool-choice --tool-call-parser hermes"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def vllm_settings(settings: ServeSettings, tmp_path: Path, log: Path) -> ServeSettings:
    return run_by(settings, tmp_path, f"--test-log {log} {PARSER}", vllm_start_s=60.0)


@pytest.fixture
def api(vllm_settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(vllm_settings, redis_url) as client:
        yield client


def chat(api: LocalClient, said: str = "call it", **body: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": said}]
    asked = {"model": "tiny", "messages": messages, "tools": TOOLS, "max_completion_tokens": 9}
    return api.post("/v1/chat/completions", json={**asked, **body})


def deltas_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line[6:])["choices"][0] for line in lines]


@pytest.mark.parametrize("choice", ["auto", None])
def test_a_call_that_the_model_chooses_is_found(api: LocalClient, choice: str | None) -> None:
    answer = chat(api, tool_choice=choice, n=2)
    assert answer.status_code == 200, answer.text
    for found in answer.json()["choices"]:
        assert found["finish_reason"] == "tool_calls"
        assert found["message"]["content"] == "well"
        function = {"name": "weather", "arguments": '{"days": 3}'}
        call = {"id": "call_7", "type": "function", "function": function}
        assert found["message"]["tool_calls"] == [call]
    assert answer.json()["usage"]["completion_tokens"] == 2 * 4


def test_the_tokenizer_of_a_running_server_is_read_once(
    api: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of its files is kept for two models alone."""
    assert chat(api).status_code == 200

    def read(*_: object) -> None:
        raise AssertionError("the tokenizer is known")

    monkeypatch.setattr("app.models.registry.ModelRegistry.tokenizer", read)
    assert chat(api).status_code == 200


def test_a_stream_has_the_parts_of_the_call(api: LocalClient) -> None:
    choices = deltas_of(chat(api, stream=True))
    parts = [choice["delta"] for choice in choices]
    assert parts[0] == {"role": "assistant", "content": ""}
    assert "".join(part.get("content", "") for part in parts) == "well"
    calls = [call for part in parts for call in part.get("tool_calls", ())]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("call_7", "weather")
    assert all(call["index"] == 0 and "id" not in call for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"days": 3}'
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_text_is_text(api: LocalClient) -> None:
    [found] = chat(api, "hello").json()["choices"]
    assert found["finish_reason"] == "stop"
    assert found["message"] == {
        "role": "assistant", "content": "well", "tool_calls": None, "refusal": None,
    }  # fmt: skip
    [cut] = chat(api, max_completion_tokens=2).json()["choices"]
    assert cut["finish_reason"] == "length"


def test_token_ids_go_to_the_chat_route(api: LocalClient, log: Path) -> None:
    assert chat(api, parallel_tool_calls=False, stop=["x"], seed=4).status_code == 200
    body = json.loads(log.read_text().splitlines()[-1])
    prompt = body["kv_transfer_params"]["prompt_token_ids"]
    rendered = api.post("/v1/completions", json={"model": "tiny", "prompt": "call it"}).json()
    assert len(prompt) == rendered["usage"]["prompt_tokens"]
    assert body["cache_salt"]
    assert (body["tools"], body["parallel_tool_calls"]) == (TOOLS, False)
    assert (body["stop"], body["seed"]) == (["x"], 4)


def test_tokens_of_a_call_have_logprobs(api: LocalClient) -> None:
    [found] = chat(api, logprobs=True, top_logprobs=1).json()["choices"]
    tokens = found["logprobs"]["content"]
    assert len(tokens) == 3  # the last one ended the output
    assert [len(token["top_logprobs"]) for token in tokens] == [1] * 3
    assert all(token["logprob"] < 0 for token in tokens)


def test_openais_client_reads_the_call(api: LocalClient) -> None:
    read = openai.types.chat.ChatCompletion.model_validate(chat(api).json())
    [call] = read.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"days": 3}


def test_a_named_tool_is_still_a_schema(api: LocalClient, log: Path) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    [found] = chat(api, tool_choice=named).json()["choices"]
    assert found["message"]["tool_calls"][0]["function"]["name"] == "weather"
    body = json.loads(log.read_text().splitlines()[-1])
    assert body["response_format"]["json_schema"]["schema"] == WEATHER
    assert "tools" not in body


def test_structured_outputs_are_passed_on(api: LocalClient, log: Path) -> None:
    for wanted in ({"regex": "a+"}, {"choice": ["a", "b"]}, {"grammar": 'start: "a"'}):
        assert chat(api, tool_choice="none", structured_outputs=wanted).status_code == 200
        body = json.loads(log.read_text().splitlines()[-1])
        assert body["structured_outputs"] == wanted
        assert "response_format" not in body


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_a_format_beside_the_choice_of_a_tool_is_refused(api: LocalClient, field: str) -> None:
    is_openai = field == "response_format"
    asked: Any = {field: {"type": "json_object"} if is_openai else {"json_object": True}}
    answer = chat(api, **asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize("args", ["", "--enable-auto-tool-choice", "--tool-call-parser hermes"])
def test_without_a_parser_the_refusal_says_what_to_set(
    vllm_settings: ServeSettings, redis_url: str, args: str
) -> None:
    with local_api(vllm_settings, redis_url, vllm_args=args) as api:
        answer = chat(api)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "tool_choice"
        assert PARSER.replace("hermes", "NAME") in error["message"]
        assert "SLEB_VLLM_ARGS" in error["message"]


def test_a_call_and_its_result_are_sent_back(api: LocalClient, log: Path) -> None:
    asked = chat(api).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": "call_7", "content": "rain"}
    messages = [{"role": "user", "content": "call it"}, asked, result]
    answer = chat(api, messages=messages)
    assert answer.status_code == 200, answer.text
    sent = json.loads(log.read_text().splitlines()[-1])["messages"]
    assert sent[1]["tool_calls"] == asked["tool_calls"]
    assert sent[2] == result
