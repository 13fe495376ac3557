"""``response_format`` over HTTP: the routes, streams, choices, refusals."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.scheduling.sequence import ResponseFormat
from app.generation import grammars
from app.generation.schema_client import SchemaClient
from tests.support.processes import is_ready
from tests.support.response_formats import PERSON, json_schema
from tests.support.serving import local_api, serving
from tests.support.tiny_directory import edit_config, tiny_tokenizer
from tests.support.waiting import wait_until

ASK: dict[str, Any] = {"model": "tiny", "seed": 3, "temperature": 1.0, "max_tokens": 120}
USER: Any = [{"role": "user", "content": "the dog"}]
FORMAT: Any = json_schema(PERSON)


def openai_of(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client
    )


def test_the_table_of_a_vocabulary_is_built_with_the_model(client: TestClient) -> None:
    client.post("/models/tiny/load").raise_for_status()
    backend = client.app_state["services"].generation.generator.engine
    assert len(backend._grammars._tokens) == 1


def test_answers_of_every_route_fulfil_the_schema(client: TestClient) -> None:
    api = openai_of(client)
    chat = api.chat.completions.create(
        messages=USER, n=2, logprobs=True, response_format=FORMAT, **ASK
    )
    texts = [choice.message.content or "" for choice in chat.choices]
    assert [choice.finish_reason for choice in chat.choices] == ["stop"] * 2
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) == 2
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content).startswith(texts[0][:5])
    with api.chat.completions.create(
        messages=USER, n=2, stream=True, response_format=FORMAT, **ASK
    ) as stream:
        streamed = ["", ""]
        for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    completion = api.completions.create(
        prompt=["a", "the dog"], extra_body={"response_format": FORMAT}, **ASK
    )
    for each in completion.choices:
        jsonschema.validate(json.loads(each.text), PERSON)
    body = {"model": "tiny", "prompt": "a", "seed": 3, "temperature": 1, "max_new_tokens": 120}
    [output] = client.post("/generate", json={**body, "response_format": FORMAT}).json()["outputs"]
    assert output["text"] == completion.choices[0].text
    del body["model"]
    compared = {**body, "models": ["tiny", "tiny"], "repeats": 1, "response_format": FORMAT}
    found = client.post("/compare", json=compared)
    assert found.status_code == 200, found.text


@pytest.mark.slow
def test_a_stop_string_and_a_limit_end_an_answer_early(client: TestClient) -> None:
    api = openai_of(client)
    ask = {**ASK, "messages": USER, "response_format": FORMAT}
    whole = api.chat.completions.create(**ask).choices[0].message.content
    assert whole is not None
    stopped = api.chat.completions.create(**ask, stop='"age"').choices[0]
    assert stopped.message.content == whole[: whole.index('"age"')]
    assert stopped.finish_reason == "length"  # it does not fulfil the schema
    [brace] = tiny_tokenizer()("}", add_special_tokens=False).input_ids
    cut = api.chat.completions.create(**ask, extra_body={"stop_token_ids": [brace]}).choices[0]
    assert cut.message.content == whole[: whole.index("}")]
    assert cut.finish_reason == "length"
    short = api.chat.completions.create(**ask | {"max_tokens": 4}).choices[0]
    assert short.finish_reason == "length"
    assert whole.startswith(short.message.content or "-")


def test_a_schema_that_fails_in_the_middle_ends_its_request_alone(client: TestClient) -> None:
    api = openai_of(client)
    whole = api.chat.completions.create(**ASK, messages=USER, response_format=FORMAT)
    wide = {f"p{number}": {"type": "integer"} for number in range(1_200)}
    bad = {"type": "object", "properties": wide, "required": ["p0"]}
    ask = {**ASK, "messages": USER, "response_format": json_schema(bad)}

    def answered(**body: Any) -> Any:
        return api.chat.completions.create(**body)

    with ThreadPoolExecutor() as pool:
        failing = [pool.submit(answered, **ask) for _ in range(3)]
        good = pool.submit(answered, **ASK, messages=USER, response_format=FORMAT)
        for each in failing:
            error = each.exception()
            assert isinstance(error, openai.BadRequestError)
            assert error.param == "response_format"
            assert "the part for /p0 of the output: " in error.message
        assert good.result().choices == whole.choices
    events = []
    with pytest.raises(openai.APIError, match="the part for /p0 of the output"):
        events += api.chat.completions.create(**ask, stream=True)
    assert not [each for each in events if each.choices[0].finish_reason]


def test_any_object_is_json(client: TestClient) -> None:
    api = openai_of(client)
    for seed in range(3):
        choice = api.chat.completions.create(
            **ASK | {"seed": seed}, messages=USER, response_format={"type": "json_object"}
        ).choices[0]
        assert (choice.message.content or "").startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)


def test_a_refusal_names_the_field(client: TestClient) -> None:
    schema = json_schema({"type": "array", "contains": {}})
    body = {"model": "tiny", "prompt": "a", "response_format": schema}
    for path in ("/generate", "/v1/completions"):
        for is_streamed in (False, True):
            answer = client.post(path, json={**body, "stream": is_streamed})
            assert answer.status_code == (400 if path.startswith("/v1") else 422)
            assert "contains" in answer.text
    problem = client.post("/generate", json=body).json()
    assert (problem["type"], problem["param"]) == ("response-format-refused", "response_format")
    invalid = client.post("/generate", json={**body, "response_format": {"type": "json_schema"}})
    assert invalid.json()["errors"][0]["pointer"] == "/response_format/json_schema"
    deep: Any = {}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    refused = client.post("/generate", json={**body, "response_format": json_schema(deep)})
    assert refused.status_code == 422


def test_a_model_without_an_end_of_text_is_refused(
    settings: ServeSettings, redis_url: str, client: TestClient
) -> None:
    models_dir = client.app_state["services"].settings.models_dir
    edit_config(models_dir / "tiny", eos_token_id=None)
    (models_dir / "tiny" / "generation_config.json").unlink(missing_ok=True)
    with local_api(settings, redis_url) as other:
        body = {"model": "tiny", "prompt": "a", "response_format": {"type": "json_object"}}
        answer = other.post("/generate", json=body)
    assert answer.status_code == 422
    assert "no end-of-text token" in answer.json()["detail"]


def test_text_is_the_default(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": "the dog"}
    plain = client.post("/generate", json=body).json()["outputs"][0]["text"]
    same = client.post("/generate", json={**body, "response_format": {"type": "text"}}).json()
    assert same["outputs"][0]["text"] == plain


def test_clients_without_keys_are_told_apart_by_their_addresses(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a proxy on this machine, which names them in X-Forwarded-For."""
    monkeypatch.setattr(grammars, "MAX_WAITING", 2)
    source, is_released = SchemaClient.source, threading.Event()

    async def held(self: SchemaClient, wanted: ResponseFormat, *rest: Any) -> str:
        while "held" in wanted.schema and not is_released.is_set():
            await asyncio.sleep(0.01)
        return await source(self, wanted, *rest)

    monkeypatch.setattr(SchemaClient, "source", held)
    with (
        serving(settings, redis_url) as (server, url),
        httpx2.Client(base_url=url, timeout=100) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        wait_until(lambda: is_ready(client), "the API is ready")

        def ask(schema: Any, address: str) -> int:
            body = {"messages": USER, "response_format": json_schema(schema), **ASK}
            headers = {"X-Forwarded-For": address}
            return client.post("/v1/chat/completions", json=body, headers=headers).status_code

        two = [threads.submit(ask, {"const": f"held {n}"}, "192.0.2.1") for n in range(2)]
        backend = server.lifespan.state["services"].generation.generator.engine
        wait_until(lambda: backend._grammars._usual._num_open.total() == 2, "its line is full")
        refused = ask(PERSON, "192.0.2.1")
        other = ask(PERSON, "192.0.2.2")
        is_released.set()
        assert [refused, other, *(each.result() for each in two)] == [429, 200, 200, 200]
