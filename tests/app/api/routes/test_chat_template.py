"""What a client sets of the chat template: a new message, a continued one, further variables."""

import inspect
import re
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from app.api.schemas.chat_template import MAX_TEMPLATE_BYTES, RESERVED
from app.config import ServeSettings
from tests.support.both_services import both
from tests.support.serving import local_api
from tests.support.tiny_directory import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if quiet %}shh{{ quiet }}{% endif %}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the dog "}]
PROMPT = "[user]the cat</s>[assistant]the dog </s>"
CHAT = "/v1/chat/completions"
WITH_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, PROMPT + "[assistant]"),
    ({"add_generation_prompt": None, "chat_template_kwargs": None}, PROMPT + "[assistant]"),
    ({"add_generation_prompt": False}, PROMPT),
    ({"continue_final_message": True}, PROMPT.removesuffix("</s>")),
    (
        {"continue_final_message": True, "add_generation_prompt": False},
        PROMPT.removesuffix("</s>"),
    ),
    ({"chat_template_kwargs": {"quiet": "é", "other": [{}]}}, PROMPT + "[assistant]shhé"),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": "no"}, "add_generation_prompt"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {f"a{n}": 1 for n in range(65)}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"quiet": "é" * (MAX_TEMPLATE_BYTES // 2)}}, "chat_template_kwargs"),
    *(
        ({"chat_template_kwargs": {name: None}}, "chat_template_kwargs")
        for name in ("messages", "tools", "add_generation_prompt", "tokenize", "eos_token", "self")
    ),
]


def set_template(settings: ServeSettings, template: str = TEMPLATE) -> None:
    tokenizer = copy(tiny_tokenizer())
    tokenizer.chat_template = template
    tokenizer.save_pretrained(settings.models_dir / "tiny")


@pytest.fixture
def client(settings: ServeSettings, redis_url: str) -> Iterator[TestClient]:
    set_template(settings)
    with local_api(settings, redis_url, preload=[]) as client:
        yield client


@pytest.mark.parametrize("is_sandboxed", [True, False])
def test_the_prompt_is_as_the_options_say(
    client: TestClient, is_sandboxed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_sandboxed:
        monkeypatch.setenv("SLEB_SANDBOX", "off")
    for options, text in WITH_OPTIONS:
        body = {"model": "tiny", "messages": MESSAGES, **options}
        tokenized = client.post("/tokenize", json=body).json()
        assert tokenized["tokens"] == tiny_tokenizer()(text).input_ids, options
        completion = client.post(CHAT, json={**body, "max_tokens": 1}).json()
        assert completion["usage"]["prompt_tokens"] == tokenized["count"], options


@pytest.mark.parametrize(("options", "param"), REFUSED)
def test_options_that_contradict_or_replace_are_refused(
    client: TestClient, options: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, **options}
    refusal = client.post(CHAT, json=body)
    assert refusal.status_code == 400, refusal.text
    assert refusal.json()["error"]["param"].startswith(param)
    assert len(refusal.text) < 2000
    assert client.post("/tokenize", json=body).status_code == 422


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "[" * 5000 + "]" * 5000])
def test_values_that_are_no_json_are_refused(client: TestClient, value: str) -> None:
    text = '{"model": "tiny", "messages": [{"role": "user", "content": "a"}],'
    text += f'"chat_template_kwargs": {{"quiet": {value}}}}}'
    refusal = client.post(CHAT, content=text, headers={"content-type": "application/json"})
    assert refusal.status_code == 400, refusal.text[:500]


def test_a_message_that_the_template_drops_cannot_be_continued(
    settings: ServeSettings, redis_url: str
) -> None:
    set_template(settings, "{{ messages[0].content }}")
    with local_api(settings, redis_url, preload=[]) as client:
        body = {"model": "tiny", "messages": MESSAGES, "continue_final_message": True}
        refusal = client.post(CHAT, json=body)
        assert refusal.status_code == 400, refusal.text
        assert "final message does not appear" in refusal.json()["error"]["message"]
        once = client.post(CHAT, json={**body, "messages": MESSAGES[:1], "max_tokens": 1})
        assert once.status_code == 200, once.text


def test_what_transformers_takes_is_reserved() -> None:
    taken = {
        name
        for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name in inspect.signature(function).parameters
    }
    taken |= set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    assert {name for name in taken if not re.match(RESERVED, name)} == {"kwargs", "documents"}


def test_another_server_applies_them(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    set_template(settings)
    with both(settings, redis_url, tmp_path) as services:
        for options, text in WITH_OPTIONS:
            body = {"model": "there", "messages": MESSAGES, "max_tokens": 1, **options}
            answer = httpx2.post(services.here + CHAT, json=body).json()
            num_expected = len(tiny_tokenizer()(text).input_ids)
            assert answer["usage"]["prompt_tokens"] == num_expected, options
