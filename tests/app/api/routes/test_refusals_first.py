"""What can be refused without work is refused before weights are read and schemas are compiled."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from tests.support.response_formats import PERSON, json_schema
from tests.support.serving import local_api
from tests.support.tiny_directory import MAX_POSITIONS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "the dog", "max_tokens": 4}
MESSAGES: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "the dog"}],
    "max_tokens": 4,
}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, MESSAGES, "no chat template"),
        (COMPLETIONS, {**PROMPT, "prompt": [7] * MAX_POSITIONS}, "exceeds the context"),
        (COMPLETIONS, {**PROMPT, "max_tokens": MAX_POSITIONS}, "exceeds the context"),
        (COMPLETIONS, {**PROMPT, "prompt": [10**6]}, "has token ids"),
        (COMPLETIONS, {**PROMPT, "ignore_eos": True}, "ignore_eos"),
        (COMPLETIONS, {**PROMPT, "logit_bias": {"99999": 1}}, "logit_bias"),
        (COMPLETIONS, {**PROMPT, "n": 128, "prompt": ["a"] * 128}, "too many outputs"),
    ],
)
def test_no_schema_is_compiled_for_a_request_that_is_refused(
    path: str, body: dict[str, Any], reason: str, client: TestClient
) -> None:
    generation = client.app_state["services"].generation
    if path == CHAT:
        generation.registry.get("tiny").tokenizer.chat_template = None
    response = client.post(path, json={**body, "response_format": json_schema(PERSON)})
    assert response.status_code == 400, response.text
    assert reason in response.json()["error"]["message"]
    grammars = generation.generator.engine._grammars
    assert not grammars._sent, "no process was asked to check a schema"
    assert not grammars._checked


@pytest.fixture
def cold_client(settings: ServeSettings, redis_url: str) -> Iterator[TestClient]:
    """Of a service with two models, none of which is loaded."""
    shutil.copytree(settings.models_dir / "tiny", settings.models_dir / "other")
    with local_api(settings, redis_url, preload=[]) as client:
        yield client


TOOLS = [{"type": "function", "function": {"name": "clock"}}]


@pytest.mark.parametrize(
    ("template", "asked", "code", "param"),
    [
        (None, {}, "no_chat_template", "messages"),
        (None, {"tools": TOOLS, "stream": True}, "no_chat_template", "messages"),
        ("{{ messages }}", {"tools": TOOLS}, "request_refused", "tool_choice"),
        (
            "{{ tools }}<tool_call>",
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            "request_refused",
            "response_format",
        ),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "tiny+int8"])
def test_no_weights_are_read_for_a_chat_that_the_template_does_not_allow(
    template: str | None,
    asked: dict[str, Any],
    code: str,
    param: str,
    name: str,
    settings: ServeSettings,
    redis_url: str,
) -> None:
    file = settings.models_dir / "tiny" / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    with local_api(settings, redis_url, preload=[]) as client:
        response = client.post(CHAT, json={**MESSAGES, **asked, "model": name})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        registry = client.app_state["services"].generation.registry
        assert not registry.weight_bytes(), "no weights were read"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {**MESSAGES, "max_completion_tokens": 5}, 400),
        (CHAT, {**MESSAGES, "tool_choice": "required"}, 400),
        (COMPLETIONS, {**PROMPT, "best_of": 2}, 400),
        ("/generate", {"model": "tiny", "prompt": "a", "top_p": 7}, 422),
        ("/compare", {"models": ["tiny", "tinny"], "prompt": "a"}, 404),
        ("/compare", {"models": ["tiny", "other"], "prompt": "a"}, 422),
        ("/compare", {"models": ["tiny", "tiny"], "prompt": "a", "baseline": "other"}, 422),
    ],
)
def test_no_weights_are_read_for_a_request_that_is_refused(
    path: str, body: dict[str, Any], status: int, cold_client: TestClient
) -> None:
    response = cold_client.post(path, json=body)
    assert response.status_code == status, response.text
    assert [model["is_loaded"] for model in cold_client.get("/models").json()["data"]] == [
        False,
        False,
    ]
