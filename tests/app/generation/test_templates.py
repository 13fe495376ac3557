"""Chat templates of others are rendered in a process that an endless one cannot hold up."""

import asyncio
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.config import ServeSettings
from app.engine.sampling.text import MessagesRefused, NoChatTemplate, render_chat
from app.generation import template_server
from app.generation.request import Chat
from app.generation.template_client import TemplateClient
from pruning.models.opening import OpeningProcess
from tests.support.hostile_models import TEMPLATES
from tests.support.serving import LocalClient, local_api
from tests.support.tiny_directory import tiny_tokenizer

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "the cat", "name": None},
    {"role": "user", "content": "é"},
]
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
]
PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{{ 'named' if 'name' in m }}{% endfor %}{{ tools | tojson }}{{ add_generation_prompt }}"
)


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = copy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def test_messages_become_the_text_that_transformers_makes_of_them() -> None:
    async def texts() -> list[str]:
        client = TemplateClient()
        try:
            chats = [Chat(MESSAGES), Chat(MESSAGES, TOOLS)]
            return [await client.render(with_template(PLAIN), chat) for chat in chats]
        finally:
            await client.aclose()

    tokenizer = with_template(PLAIN)
    assert asyncio.run(texts()) == [
        render_chat(tokenizer, MESSAGES),
        render_chat(tokenizer, MESSAGES, TOOLS),
    ]


def test_a_template_that_does_not_end_ends_its_own_messages_alone() -> None:
    """Each in a fork of its own: another template answers meanwhile, and messages behind it do."""

    async def ask() -> None:
        client = TemplateClient()
        plain = with_template(PLAIN)
        try:
            await client.render(plain, Chat(MESSAGES))
            hostile = [
                asyncio.create_task(client.render(with_template(template), Chat(MESSAGES)))
                for template in TEMPLATES.values()
            ]
            await asyncio.sleep(0)
            began_s = time.monotonic()
            for _ in range(3):
                assert await client.render(plain, Chat(MESSAGES))
            assert not all(task.done() for task in hostile)
            for name, result in zip(
                TEMPLATES, await asyncio.gather(*hostile, return_exceptions=True), strict=True
            ):
                assert isinstance(result, MessagesRefused), name
                assert "it takes more than" in str(result), (name, str(result))
            waited_s = len(TEMPLATES) * template_server.DEADLINE_S
            assert time.monotonic() - began_s < waited_s
            long = with_template("{% if messages | length > 1 %}" + ENDLESS + "{% endif %}")
            both = [client.render(long, Chat(MESSAGES)), client.render(long, Chat(MESSAGES[:1]))]
            endless, short = await asyncio.gather(*both, return_exceptions=True)
            assert isinstance(endless, MessagesRefused)
            assert short == ""
        finally:
            await client.aclose()

    asyncio.run(ask())


ENDLESS = TEMPLATES["loops"]


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ x.y.z }}"])
def test_what_a_template_cannot_render_is_refused_with_its_reason(template: str) -> None:
    async def ask(template: str | None) -> None:
        client = TemplateClient()
        try:
            await client.render(with_template(template), Chat(MESSAGES))
        finally:
            await client.aclose()

    with pytest.raises(MessagesRefused, match="cannot render"):
        asyncio.run(ask(template))
    with pytest.raises(NoChatTemplate):
        asyncio.run(ask(None))


@pytest.fixture
def client(
    data_dir: Path, settings: ServeSettings, redis_url: str, opening_process: OpeningProcess
) -> Iterator[LocalClient]:
    """Of an API with a model whose template ends for one message, and not for more."""
    assert opening_process.refusal(data_dir / "models" / "tiny") == ""
    template = "{% if messages | length > 1 %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"
    (data_dir / "models" / "tiny" / "chat_template.jinja").write_text(template)
    with local_api(settings, redis_url) as client:
        yield client


def test_a_template_that_loops_on_some_messages_is_a_clear_refusal(client: LocalClient) -> None:
    body = {"model": "tiny", "messages": MESSAGES[1:], "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    refused = client.post("/v1/chat/completions", json={**body, "messages": MESSAGES[1:] * 2})
    assert refused.status_code == 400, refused.text
    assert "the chat template cannot render them: it takes more than" in refused.text
    assert client.post("/v1/chat/completions", json=body).status_code == 200
