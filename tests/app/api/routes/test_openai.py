"""OpenAI's API as its own client sees it, compared with what ``/generate`` answers."""

import os
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from app.config import ServeSettings
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.compiled import load_compiled
from tests.support.engines import FailingEngine, gated
from tests.support.generate_requests import PROMPTS, generate
from tests.support.serving import local_api
from tests.support.tiny_directory import MAX_POSITIONS
from tests.support.waiting import wait_until

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
USER: Any = [{"role": "user", "content": "the dog"}]


def openai_of(client: TestClient) -> openai.OpenAI:
    """The client as it is sold, on a connection that stays in this process."""
    return openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client
    )


@pytest.fixture
def api(client: TestClient) -> openai.OpenAI:
    return openai_of(client)


def expected(client: TestClient, prompts: str | list[str], num_tokens: int) -> list[str]:
    body = {"prompt": prompts, "max_new_tokens": num_tokens, "ignore_eos": True}
    return [output["text"] for output in generate(client, **body)["outputs"]]


def usage_of(answer: Any) -> tuple[int, int, int]:
    usage = answer.usage
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


# ---- models


def test_models_are_those_that_can_be_served(api: openai.OpenAI, client: TestClient) -> None:
    data_dir = client.app_state["services"].settings.data_dir
    manifest = publish_pruned(data_dir)
    (data_dir / "models" / "odd").mkdir()
    os.utime(data_dir / "models" / "tiny" / "config.json", (0, 1_700_000_000))
    (data_dir / "models" / "odd" / "config.json").write_text("{}")
    names = [model.id for model in api.models.list()]
    assert names == ["tiny", "tiny@-1", "tiny@-2", "tiny@-3", manifest.name]
    model = api.models.retrieve("tiny@-2")
    assert (model.id, model.object, model.owned_by) == ("tiny@-2", "model", "sleb-serve")
    assert model.created == int(manifest.created_at)
    for dense in ("tiny", "tiny+int8"):
        assert api.models.retrieve(dense).created == 1_700_000_000
    with pytest.raises(openai.NotFoundError) as missing:
        api.models.retrieve("tiny@-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        api.models.retrieve("odd")
    answer = api.completions.create(**{**GREEDY, "model": "tiny@-2"}, prompt="the dog")
    assert answer.model == "tiny@-2"


# ---- completions


def test_completions_are_the_answers_of_generate(
    api: openai.OpenAI, client: TestClient, tiny_loaded: LoadedModel
) -> None:
    answer = api.completions.create(**GREEDY, prompt=PROMPTS, user="me")
    assert [choice.text for choice in answer.choices] == expected(client, PROMPTS, 16)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    prompt_ids: list[list[int]] = tiny_loaded.tokenizer(PROMPTS).input_ids
    num_prompt = sum(map(len, prompt_ids))
    assert usage_of(answer) == (num_prompt, 48, num_prompt + 48)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    by_ids = api.completions.create(**GREEDY, prompt=prompt_ids)
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in answer.choices]
    one = api.completions.create(**GREEDY, prompt=prompt_ids[0])
    assert one.choices[0].text == answer.choices[0].text


def test_n_answers_differ_and_a_seed_repeats_all_of_them(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {**GREEDY, "temperature": 1.5, "seed": 7, "prompt": ["the dog", "a"]}
    answer = api.completions.create(**ask, n=3, best_of=3)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len(set(texts)) == 6
    assert [choice.text for choice in api.completions.create(**ask, n=3).choices] == texts
    alone = api.completions.create(**ask)
    assert [choice.text for choice in alone.choices] == [texts[0], texts[3]]
    assert usage_of(answer) == (usage_of(alone)[0], 96, usage_of(alone)[0] + 96)


def test_an_echo_is_the_prompt_in_front(api: openai.OpenAI, tiny_loaded: LoadedModel) -> None:
    plain = api.completions.create(**GREEDY, prompt="the dog").choices[0].text
    prompt_ids: list[int] = tiny_loaded.tokenizer("the dog").input_ids
    for prompt in ("the dog", prompt_ids):
        ask: dict[str, Any] = {**GREEDY, "prompt": prompt, "echo": True}
        assert api.completions.create(**ask).choices[0].text == f"the dog{plain}"
        assert text_of(list(api.completions.create(**ask, stream=True))) == f"the dog{plain}"


def text_of(chunks: Sequence[Completion], index: int = 0) -> str:
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)


def test_chunks_are_the_whole_answer(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {**GREEDY, "prompt": PROMPTS, "n": 2, "logprobs": 2}
    whole = api.completions.create(**ask)
    options: Any = {"include_usage": True}
    *chunks, last = api.completions.create(**ask, stream=True, stream_options=options)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in (*chunks, last)}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert usage_of(last) == usage_of(whole)
    for choice in whole.choices:
        each = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert text_of(chunks, choice.index) == choice.text
        assert [c.finish_reason for c in each] == [None] * (len(each) - 1) + ["length"]
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        for name in ("tokens", "text_offset"):
            assert [value for c in each for value in getattr(c.logprobs, name)] == getattr(
                choice.logprobs, name
            )


def test_usage_can_come_with_every_chunk_and_by_default_with_none(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {**GREEDY, "prompt": "the dog", "stream": True}
    assert all(chunk.usage is None for chunk in api.completions.create(**ask))
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    usages = [usage_of(each) for each in api.completions.create(**ask, stream_options=options)]
    assert usages == sorted(usages)
    assert usages[-1] == usages[-2] == (2, 16, 18)
    assert usages[0][1] < 16


def test_log_probabilities_have_the_older_shape(api: openai.OpenAI) -> None:
    choice = api.completions.create(**GREEDY, prompt="the quick", logprobs=3).choices[0]
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    assert found.token_logprobs is not None
    assert len(found.tokens) == len(found.text_offset) == len(found.top_logprobs) == 16
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] == max(top.values()) == logprob
    assert found.text_offset == sorted(found.text_offset)
    assert 0 == found.text_offset[0] < len(choice.text) / 2 < found.text_offset[-1]
    for before, token, offset in zip(
        ["", *found.tokens], found.tokens, found.text_offset, strict=False
    ):
        if "\ufffd" not in before + token:
            assert choice.text[offset:].startswith(token)
    none = api.completions.create(**GREEDY, prompt="the quick", logprobs=0).choices[0].logprobs
    assert none is not None
    assert none.top_logprobs is None
    assert none.token_logprobs == pytest.approx(found.token_logprobs, abs=1e-4)


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(
    api: openai.OpenAI, client: TestClient
) -> None:
    (whole,) = expected(client, "the dog", 16)
    stop = whole[3:5]
    ask: dict[str, Any] = {**GREEDY, "prompt": "the dog", "stop": [stop, "never"]}
    choice = api.completions.create(**ask).choices[0]
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = list(api.completions.create(**ask, stream=True))
    assert text_of(chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "stop"


# ---- chat


def test_chat_is_generation_from_the_template(
    api: openai.OpenAI, client: TestClient, tiny_loaded: LoadedModel
) -> None:
    messages: Any = [
        {"role": "developer", "content": "the quick "},
        {"role": "user", "content": [{"type": "text", "text": "brown "}]},
        {"role": "assistant", "content": "fox "},
        {"role": "user", "content": "jumps", "name": "ann"},
    ]
    answer = api.chat.completions.create(**GREEDY, messages=messages, max_completion_tokens=9)
    (choice,) = answer.choices
    prompt = "the quick brown fox jumps"
    assert choice.message.content == expected(client, prompt, 9)[0]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    num_prompt = len(tiny_loaded.tokenizer(prompt).input_ids)
    assert usage_of(answer) == (num_prompt, 9, num_prompt + 9)
    assert answer.id.startswith("chatcmpl-")
    # What was answered can be sent back as it is.
    again: Any = [*messages, choice.message, *USER]
    assert api.chat.completions.create(**GREEDY, messages=again, max_tokens=2).choices


def test_chat_fills_the_context_unless_told_otherwise(api: openai.OpenAI) -> None:
    answer = api.chat.completions.create(**GREEDY, messages=USER)
    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_POSITIONS
    assert answer.choices[0].finish_reason == "length"
    long: Any = [{"role": "user", "content": "the dog " * MAX_POSITIONS}]
    with pytest.raises(openai.BadRequestError) as refusal:
        api.chat.completions.create(**GREEDY, messages=long)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")


def test_a_chat_without_a_limit_ends(api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the context does not end it first: a model without an end of its own would fill it."""
    monkeypatch.setattr("app.api.routes.openai.DEFAULT_CHAT_TOKENS", 20)
    answer = api.chat.completions.create(**GREEDY, messages=USER)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (20, "length")


def deltas(chunks: Sequence[ChatCompletionChunk], index: int) -> list[tuple[str | None, Any, Any]]:
    return [
        (choice.delta.role, choice.delta.content, choice.finish_reason)
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    ]


def test_chat_streams_a_role_then_text_then_the_reason(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {**GREEDY, "messages": USER, "max_tokens": 12, "n": 2, "logprobs": True}
    whole = api.chat.completions.create(**ask)
    options: Any = {"include_usage": True, "include_obfuscation": False}
    *chunks, last = api.chat.completions.create(**ask, stream=True, stream_options=options)
    for choice in whole.choices:
        (role, *texts, reason) = deltas(chunks, choice.index)
        assert role == ("assistant", "", None)
        assert {(text[0], text[2]) for text in texts} == {(None, None)}
        assert "".join(text[1] for text in texts) == choice.message.content
        assert reason == (None, None, "length")
    assert (last.choices, usage_of(last)) == ([], usage_of(whole))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_chat_log_probabilities_have_bytes_that_make_up_the_text(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {**GREEDY, "messages": USER, "max_tokens": 30}
    (choice,) = api.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert len(tokens) == 30
    assert any("\ufffd" in token.token for token in tokens)
    raw = bytes(byte for token in tokens for byte in token.bytes or [])
    assert raw.decode(errors="replace") == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].bytes == token.bytes
    (plain,) = api.chat.completions.create(**ask, logprobs=True).choices
    assert plain.logprobs is not None
    assert [token.top_logprobs for token in plain.logprobs.content or []] == [[]] * 30


# ---- what goes wrong, and what is around it


def test_errors_are_the_classes_that_clients_catch(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.completions.create(model="other", prompt="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model="tiny", messages=USER, temperature=-1)
    assert refused.value.param == "temperature"
    assert refused.value.request_id


def test_a_full_line_is_a_rate_limit_with_advice_when_to_come_back(
    settings: ServeSettings, redis_url: str
) -> None:
    ask: dict[str, Any] = {**GREEDY, "prompt": ["a"] * 12, "max_tokens": 2, "stream": True}
    with gated() as engine, local_api(settings, redis_url, engine) as client:
        api = openai_of(client)
        with api.completions.create(**ask) as chunks:
            with pytest.raises(openai.RateLimitError) as refusal:
                api.chat.completions.create(model="tiny", messages=USER)
            assert refusal.value.code == "rate_limit_exceeded"
            assert int(refusal.value.response.headers["retry-after"]) >= 1
            engine.gate.set()
            assert len(text_of(list(chunks))) > 0


@pytest.mark.parametrize("num_good", [0, 4])
def test_an_error_in_a_stream_is_its_last_chunk(
    settings: ServeSettings, redis_url: str, num_good: int
) -> None:
    with local_api(settings, redis_url, FailingEngine(num_good)) as client:
        chunks = openai_of(client).completions.create(**GREEDY, prompt="the dog", stream=True)
        with pytest.raises(openai.APIError, match="the engine failed") as failure:
            list(chunks)
        assert failure.value.code == "generation_failed"
        body = {"model": "tiny", "prompt": "a", "stream": True}
        lines = client.post("/v1/completions", json=body).text.strip().splitlines()
        assert '"server_error"' in lines[-1]
        with pytest.raises(openai.InternalServerError):
            openai_of(client).completions.create(**GREEDY, prompt="the dog")


def test_an_answer_that_a_shutdown_cuts_short_is_an_error(
    settings: ServeSettings, redis_url: str
) -> None:
    with gated(num_free=3) as engine, local_api(settings, redis_url, engine) as client:
        ask: dict[str, Any] = {**GREEDY, "prompt": "the dog", "max_tokens": 200, "stream": True}
        chunks = openai_of(client).completions.create(**ask)
        next(chunks)
        assert client.portal is not None
        stopping = client.portal.start_task_soon(
            client.app_state["services"].generation.engine.stop
        )
        body = {"model": "tiny", "prompt": "a"}
        wait_until(lambda: client.post("/generate", json=body).status_code == 503, "it stops")
        engine.gate.set()
        with pytest.raises(openai.APIError) as failure:
            list(chunks)
        assert failure.value.code == "engine_stopped"
        stopping.result()


def test_openai_requests_are_counted_and_keep_their_id(
    api: openai.OpenAI, client: TestClient
) -> None:
    api.completions.create(**GREEDY, prompt=["a", "the dog"], max_tokens=5)
    list(api.chat.completions.create(**GREEDY, messages=USER, max_tokens=5, stream=True))
    labels = 'engine="own",model_name="tiny",traffic="live",variant="dense"'
    text = client.get("/metrics").text
    assert f"sleb_generation_tokens_total{{{labels}}} 15.0" in text
    labels = labels.replace(",", ',finished_reason="length",', 1)
    assert f"sleb_request_success_total{{{labels}}} 3.0" in text
    for path in ("models", "models/none", "nothing"):
        answer = client.get(f"/v1/{path}", headers={"X-Request-Id": "mine"})
        assert answer.headers["x-request-id"] == "mine"


def test_a_stream_ends_with_done_and_is_ascii_whatever_the_text(client: TestClient) -> None:
    body = {"model": "tiny", "prompt": "naïve\u2028数学", "echo": True, "stream": True}
    content = client.post("/v1/completions", json=body).content
    assert content.isascii()  # some clients break lines at more than a line feed
    assert content.endswith(b"data: [DONE]\n\n")


# ---- fingerprints


def test_a_fingerprint_is_that_of_weights_and_kernels(
    api: openai.OpenAI, client: TestClient
) -> None:
    publish_pruned(client.app_state["services"].settings.data_dir)

    def fingerprint(model: str, **extra: bool) -> str:
        body = {**GREEDY, "model": model, "extra_body": extra}
        chat = api.chat.completions.create(messages=USER, max_tokens=2, **body)
        chunks = list(api.completions.create(prompt="the", max_tokens=2, stream=True, **body))
        assert {chunk.system_fingerprint for chunk in chunks} == {chat.system_fingerprint}
        return str(chat.system_fingerprint)

    found = [fingerprint("tiny"), fingerprint("tiny@-1"), fingerprint("tiny", reproducible=True)]
    assert len({*found}) == 3
    assert all(each.startswith("fp_") for each in found)
    assert fingerprint("tiny") == found[0]


def test_a_setting_makes_all_outputs_reproducible(settings: ServeSettings, redis_url: str) -> None:
    load_compiled()
    fingerprints = []
    for is_set in (True, False):
        with local_api(settings, redis_url, reproducible=is_set) as client:
            ask = {
                "model": "tiny",
                "prompt": "the dog",
                "max_tokens": 2,
                "reproducible": not is_set,
            }
            answer = client.post("/v1/completions", json=ask).json()
            fingerprints.append(answer["system_fingerprint"])
            ready = client.get("/health/ready").json()
            assert ready["status"] == "ready"
            assert ready["kernels"] in {"timing", "ready"}
    assert fingerprints[0] == fingerprints[1]
