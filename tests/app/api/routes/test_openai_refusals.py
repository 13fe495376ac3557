"""What the OpenAI routes cannot or will not do is a clear 4xx in OpenAI's envelope, never a 5xx."""

from typing import Any

from fastapi.testclient import TestClient

from tests.support.response_formats import json_schema
from tests.support.tiny_directory import MAX_POSITIONS
from tests.support.waiting import wait_until

JSON = {"content-type": "application/json"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "the dog"}
CALL = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
WHOLE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "tiny", "prompt": "the dog"},
    CHAT: {"model": "tiny", "messages": [USER], "max_tokens": 4},
}


def check(response: Any, status: int = 400) -> dict[str, Any]:
    """The error in the envelope."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.text) < 2000
    (error,) = response.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) > 8
    found: dict[str, Any] = error
    return found


def goes_on(client: TestClient) -> None:
    for path, body in WHOLE.items():
        assert client.post(path, json=body).status_code == 200


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"model": 7}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": "7"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 1e300}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x", 1]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"wrong": 1}}, "stream_options.wrong"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"frequency_penalty": "1"}, "frequency_penalty"),
    ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
    ({"logit_bias": {"5": "1"}}, "logit_bias[5]"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {str(token_id): 1 for token_id in range(1025)}}, "logit_bias"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": json_schema({"type": "array", "uniqueItems": True})}, "response_format"),
    ({"response_format": json_schema({"type": 7})}, "response_format"),
    ({"response_format": json_schema({}) | {"strict": True}}, "response_format.strict"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"no_such_field": 1}, "no_such_field"),
]
OF_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[5], [10**6]]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": [-1], "echo": True}, "prompt"),
    ({"prompt": [[1], [2**32]], "echo": True}, "prompt"),
    ({"prompt": [2**32 - 1], "echo": True}, "prompt"),
    ({"prompt": ["a"] * 300}, "prompt"),
    ({"prompt": ["a"] * 7, "n": 2}, "prompt"),
    ({"prompt": "the dog " * MAX_POSITIONS}, "prompt"),
    ({"max_tokens": MAX_POSITIONS}, "prompt"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "b"}, "suffix"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 0, "echo": False, "logprobs": 1}, "max_tokens"),
    ({"messages": [USER]}, "messages"),
]
OF_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "user", "content": "the dog " * MAX_POSITIONS}]}, "messages"),
    ({"messages": [USER, {"role": "tool"}]}, "messages[1].content"),
    ({"messages": [USER, {"role": "other", "content": "a"}]}, "messages[1].role"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content"),
    ({"messages": [{**USER, "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_completion_tokens": 5}, "max_tokens"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"n": 13}, "messages"),
    ({"prompt": "a"}, "prompt"),
]
CASES = [
    *((path, *case) for path in WHOLE for case in BOTH),
    *((COMPLETIONS, *case) for case in OF_COMPLETIONS),
    *((CHAT, *case) for case in OF_CHAT),
]


def test_a_field_that_asks_for_the_impossible_is_named(client: TestClient) -> None:
    for path, change, param in CASES:
        error = check(client.post(path, json={**WHOLE[path], **change}))
        assert (error["type"], error["param"]) == ("invalid_request_error", param), change
    goes_on(client)


IGNORED: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "a"},
}
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "n": 1,
    "stop": None,
    "seed": None,
    "top_k": -1,
    "temperature": None,
    "stream": None,
    "stream_options": None,
}


def test_what_changes_no_answer_is_taken(client: TestClient) -> None:
    chat = {
        **IGNORED,
        **NEUTRAL,
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "logprobs": False,
        "max_completion_tokens": 4,
        "reasoning_effort": None,
    }
    legacy = {
        **NEUTRAL,
        "user": "me",
        "best_of": 1,
        "suffix": None,
        "echo": False,
        "logprobs": None,
    }
    for path, change in ((CHAT, chat), (COMPLETIONS, legacy)):
        response = client.post(path, json={**WHOLE[path], **change})
        assert response.status_code == 200, response.text


BODIES: list[tuple[bytes, int]] = [
    (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400),
    (b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', 400),
    (b'{"model": "tiny", "prompt": "a", "presence_penalty": NaN}', 400),
    (b'{"model": "tiny", "prompt": "\\ud800"}', 400),
    (b'{"model": "tiny", "prompt": "a", "stop": ["\\udfff"]}', 400),
    (b'{"model": "\\ud800", "prompt": "a"}', 400),
    (b'{"model": "tiny", "prompt": "a", "\\ud800": 1}', 400),
    (b'{"model": "tiny", "prompt": "\xff"}', 400),
    (b'{"model": "tiny", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400),
    (b'{"user": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
    (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 9000 + b"}", 400),
    (b'{"model": "tiny"', 400),
    (b"[]", 400),
    (b"null", 400),
    (b"", 400),
    (b'{"model": "tiny", "prompt": "' + b"a" * 10_000_000 + b'"}', 413),
]


def test_a_bad_body_is_a_clear_4xx(client: TestClient) -> None:
    for content, status in BODIES:
        check(client.post(COMPLETIONS, content=content, headers=JSON), status)
    for content in (b'"\\ud800"', b'[{"type": "text", "text": "\\ud800"}]'):
        message = b'{"role": "user", "content": ' + content + b"}"
        body = b'{"model": "tiny", "messages": [' + message + b"]}"
        check(client.post(CHAT, content=body, headers=JSON))
    goes_on(client)


def test_other_content_is_refused_with_the_right_type(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; b=1"):
        headers = {"content-type": kind}
        content = b'{"model": "tiny", "prompt": "a"}'
        error = check(client.post(COMPLETIONS, content=content, headers=headers))
        assert "application/json" in error["message"]


def test_an_unknown_model_is_not_found(client: TestClient) -> None:
    for model in ("other", "tiny@-9", "../tiny", "tiny\0", "a/b", "é", "@-1"):
        for path, body in WHOLE.items():
            error = check(client.post(path, json={**body, "model": model}), 404)
            assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_what_is_not_there_is_told_in_the_envelope(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/%ff%fe", 404),
        ("GET", "/v1/models/a%2Fb", 404),
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
    ):
        response = client.request(method, path)
        check(response, status)
        assert ("allow" in response.headers) == (status == 405)


def test_a_model_without_a_chat_template_takes_prompts_only(client: TestClient) -> None:
    registry = client.app_state["services"].generation.registry
    registry.get("tiny").tokenizer.chat_template = None
    error = check(client.post(CHAT, json=WHOLE[CHAT]))
    assert (error["param"], error["code"]) == ("messages", "no_chat_template")


def test_messages_that_the_template_refuses_are_a_clear_error(client: TestClient) -> None:
    registry = client.app_state["services"].generation.registry
    refuse = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}a"
    registry.get("tiny").tokenizer.chat_template = refuse
    assert client.post(CHAT, json=WHOLE[CHAT]).status_code == 200
    error = check(client.post(CHAT, json={**WHOLE[CHAT], "messages": [USER, USER]}))
    assert error["param"] == "messages"
    assert "one at a time" in error["message"]


def test_a_service_that_stops_says_so_and_when_to_come_back(client: TestClient) -> None:
    services = client.app_state["services"]
    assert client.portal is not None
    client.portal.call(services.generation.engine.stop)
    wait_until(lambda: not services.generation.engine.is_alive, "the engine has stopped")
    response = client.post(COMPLETIONS, json=WHOLE[COMPLETIONS])
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["type"] == "server_error"


def test_errors_name_what_the_client_knows(client: TestClient) -> None:
    long = {**WHOLE[COMPLETIONS], "max_tokens": MAX_POSITIONS}
    assert (
        f"max_tokens={MAX_POSITIONS} exceeds"
        in check(client.post(COMPLETIONS, json=long))["message"]
    )
    other = check(client.post(CHAT, json={**WHOLE[CHAT], "model": "other"}), 404)
    assert "GET /v1/models lists all models" in other["message"]
    unknown = check(client.post(CHAT, json={**WHOLE[CHAT], "max_new_tokens": 1}))
    assert unknown["message"].startswith("max_new_tokens: unknown field")
    many = check(client.post(CHAT, json={**WHOLE[CHAT], "messages": [USER] * 2049}))
    assert (many["param"], "2048" in many["message"]) == ("messages", True)


def test_embeddings_are_refused_by_name(client: TestClient) -> None:
    body = {"model": "tiny", "input": "the dog"}
    error = check(client.post("/v1/embeddings", json=body), 404)
    assert (error["code"], error["type"]) == ("not_offered", "invalid_request_error")
    assert "embeddings are not supported" in error["message"]
