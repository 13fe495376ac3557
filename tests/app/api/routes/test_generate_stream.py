"""``POST /generate`` as a stream of events, and what each of its settings does to an answer."""

from typing import Any

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.engine import Engine
from tests.support.engines import CrashingEngine, FailingEngine, gated
from tests.support.generate_requests import PROMPTS, Event, events_in, facts, generate
from tests.support.serving import local_api


def streamed(client: httpx2.Client, **body: Any) -> list[Event]:
    body = {"model": "tiny", "prompt": "the dog", "stream": True, **body}
    with client.sse("/generate", method="POST", json=body) as source:
        assert source.response.status_code == 200
        assert source.response.headers["cache-control"] == "no-cache"
        assert source.response.headers["x-request-id"]
        return events_in(source)


@pytest.mark.parametrize("stop", [[], ["zz", "a"]])
def test_the_pieces_of_every_output_are_its_whole_text(client: TestClient, stop: list[str]) -> None:
    body = {"prompt": PROMPTS, "max_new_tokens": 24, "return_token_ids": True, "logprobs": 2}
    *pieces, last = streamed(client, **body, stop=stop)
    whole = generate(client, **body, stop=stop)["outputs"]
    assert {name for name, _ in pieces} == {"text"}
    assert len(pieces) > 2 * len(PROMPTS)
    for index, output in enumerate(last[1]["outputs"]):
        each = [piece for _, piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in each) == output["text"]
        for name in ("token_ids", "logprobs"):
            assert [token for piece in each for token in piece[name]] == output[name]
    assert last[0] == "done"
    assert facts(last[1]["outputs"]) == facts(whole)
    assert last[1]["outputs"][0]["timings"]["ttft_s"] > 0
    assert (last[1]["model"], last[1]["variant"]) == ("tiny", "dense")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"prompt": ""}, 422),
        ({"temperature": -1}, 422),
        ({"model": "none"}, 404),
        ({"max_new_tokens": 10_000}, 422),
        ({"prompt": ["a"] * 13}, 422),
    ],
)
def test_what_is_refused_is_no_stream(
    client: TestClient, change: dict[str, Any], status: int
) -> None:
    body = {"model": "tiny", "prompt": "the dog", "stream": True, **change}
    response = client.post("/generate", json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("engine", "status", "kind"),
    [(FailingEngine(3), 500, "generation-failed"), (CrashingEngine(3), 503, "engine-stopped")],
    ids=["forward", "thread"],
)
def test_an_error_in_a_stream_is_its_last_event(
    settings: ServeSettings, redis_url: str, engine: Engine, status: int, kind: str
) -> None:
    with local_api(settings, redis_url, engine) as client:
        *pieces, (name, problem) = streamed(client, max_new_tokens=50, ignore_eos=True)
        assert {name for name, _ in pieces} <= {"text"}
        assert name == "error"
        assert (problem["status"], problem["type"]) == (status, kind)
        body = {"model": "tiny", "prompt": "the dog"}
        assert client.post("/generate", json=body).status_code == status


def test_a_stream_without_news_says_that_it_is_alive(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.generations.KEEP_ALIVE_S", 0.01)
    body = {"model": "tiny", "prompt": "the dog", "stream": True}
    with (
        gated() as engine,
        local_api(settings, redis_url, engine) as client,
        client.stream("POST", "/generate", json=body) as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == ": ping"
        engine.gate.set()
        assert "event: done" in lines


def test_a_stream_counts_as_any_other_request(client: TestClient) -> None:
    streamed(client, max_new_tokens=5, ignore_eos=True)
    labels = 'engine="own",model_name="tiny",traffic="live",variant="dense"'
    text = client.get("/metrics").text
    assert f"sleb_generation_tokens_total{{{labels}}} 5.0" in text
    assert f"sleb_inter_token_latency_seconds_count{{{labels}}} 4.0" in text
    labels = labels.replace(",", ',finished_reason="length",', 1)
    assert f"sleb_request_success_total{{{labels}}} 1.0" in text


def test_log_probabilities_are_of_each_token_and_its_best_rivals(client: TestClient) -> None:
    body = {"max_new_tokens": 8, "return_token_ids": True, "ignore_eos": True}
    (output,) = generate(client, **body, logprobs=3)["outputs"]
    tokens = output["logprobs"]
    assert [token["token_id"] for token in tokens] == output["token_ids"]
    for token in tokens:
        best = [rival["logprob"] for rival in token["top"]]
        assert best == sorted(best, reverse=True)
        assert token["logprob"] == best[0] < 0  # greedy
    (plain,) = generate(client, **body, logprobs=0)["outputs"]
    assert [token["top"] for token in plain["logprobs"]] == [[]] * 8
    assert "logprobs" in generate(client, **body)["outputs"][0]
    assert generate(client, **body)["outputs"][0]["logprobs"] is None


def test_an_answer_out_of_time_ends_with_what_there_is(client: TestClient) -> None:
    (output,) = generate(client, max_new_tokens=250, ignore_eos=True, timeout_s=1e-6)["outputs"]
    assert output["finish_reason"] == "timeout"
    assert output["completion_tokens"] < 250
    *_, (name, last) = streamed(client, max_new_tokens=250, ignore_eos=True, timeout_s=1e-6)
    assert (name, last["outputs"][0]["finish_reason"]) == ("done", "timeout")


def test_a_stop_token_ends_an_answer(client: TestClient) -> None:
    body = {"max_new_tokens": 12, "return_token_ids": True, "ignore_eos": True}
    token_ids = generate(client, **body)["outputs"][0]["token_ids"]
    stop = next(token_id for token_id in token_ids[1:] if token_id != token_ids[0])
    (output,) = generate(client, **body, stop_token_ids=[stop])["outputs"]
    assert output["token_ids"] == token_ids[: token_ids.index(stop) + 1]
    assert output["finish_reason"] == "stop"


def test_min_p_and_the_penalty_reach_the_sampler(client: TestClient) -> None:
    body = {"max_new_tokens": 12, "return_token_ids": True, "ignore_eos": True, "prompt": "a"}
    greedy = generate(client, **body)["outputs"][0]["token_ids"]
    only_best = generate(client, **body, temperature=5, min_p=1)["outputs"][0]["token_ids"]
    assert only_best == greedy
    assert len(set(greedy)) < len(greedy)
    penalised = generate(client, **body, repetition_penalty=2)["outputs"][0]["token_ids"]
    assert len(set(penalised)) > len(set(greedy))


@pytest.mark.parametrize(
    "change",
    [
        {"min_p": -0.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": ["a"]},
        {"logprobs": -1},
        {"logprobs": 21},
        {"timeout_s": 0},
        {"timeout_s": 1e9},
        {"stream": "perhaps"},
    ],
)
def test_settings_out_of_range_are_refused(client: TestClient, change: dict[str, Any]) -> None:
    response = client.post("/generate", json={"model": "tiny", "prompt": "the dog", **change})
    assert response.status_code == 422, response.text
    (name,) = change
    assert name in response.json()["detail"]


@pytest.mark.parametrize("field", ["min_p", "repetition_penalty", "timeout_s", "top_p"])
def test_what_is_no_number_is_refused(client: TestClient, field: str) -> None:
    body = f'{{"model": "tiny", "prompt": "a", "{field}": NaN}}'.encode()
    headers = {"content-type": "application/json"}
    assert client.post("/generate", content=body, headers=headers).status_code == 422


def test_a_full_line_is_refused_before_a_stream_begins(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    body = {"model": "tiny", "prompt": ["the dog"] * 12, "stream": True, "max_new_tokens": 2}
    with (
        gated() as engine,
        local_api(settings, redis_url, engine) as client,
        client.sse("/generate", method="POST", json=body) as source,
    ):
        events = iter(source)
        refused = client.post("/generate", json={**body, "prompt": "a"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        assert events_in(events)[-1][0] == "done"
