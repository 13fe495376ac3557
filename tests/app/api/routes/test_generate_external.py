"""A model of another server: a second service of ours on a port of its own, with a real model."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis

from app.config import ServeSettings
from app.engine.cache.pages import PAGE_TOKENS
from app.main import create_app
from tests.support.api_fixtures import publish_pruned
from tests.support.both_services import Both, both
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.external import declare
from tests.support.generate_requests import PROMPTS, events_in, facts
from tests.support.raw_requests import send
from tests.support.response_formats import PERSON, json_schema
from tests.support.serving import LocalClient
from tests.support.waiting import wait_until

DENSE = {"model_name": "there", "variant": "dense", "traffic": "live", "engine": "openai"}


@pytest.fixture(autouse=True)
def _empty_store(redis_client: redis.Redis) -> None:
    redis_client.ping()


@pytest.fixture
def services(settings: ServeSettings, redis_url: str, tmp_path: Path) -> Iterator[Both]:
    with both(settings, redis_url, tmp_path) as found:
        yield found


def test_generate_answers_as_the_other_server_does(services: Both) -> None:
    body = {"prompt": PROMPTS, "max_new_tokens": 12, "stop": ["zz", "a"], "logprobs": 2}
    mine = services.generate(services.here, **body).json()
    each = services.generate(services.there, **body).json()
    assert facts(mine["outputs"]) == facts(each["outputs"])
    assert (mine["model"], mine["variant"]) == ("there", "dense")
    for output, other in zip(mine["outputs"], each["outputs"], strict=True):
        tokens = [(token["token"], token["logprob"]) for token in other["logprobs"]]
        assert [token["token"] for token in output["logprobs"]] == [text for text, _ in tokens]
        assert {token["token_id"] for token in output["logprobs"]} == {None}
        assert [token["logprob"] for token in output["logprobs"]] == pytest.approx(
            [logprob for _, logprob in tokens], abs=1e-4
        )
        timings = output["timings"]
        assert 0 <= timings["queue_s"] <= timings["ttft_s"] <= timings["e2e_s"]


def test_a_stream_is_the_whole_answer(services: Both) -> None:
    body = {"model": "there", "prompt": PROMPTS, "max_new_tokens": 12, "ignore_eos": True}
    with (
        httpx2.Client(base_url=services.here) as client,
        client.sse("/generate", method="POST", json={**body, "stream": True}) as source,
    ):
        *pieces, (name, last) = events_in(source)
    assert name == "done"
    assert len(pieces) >= len(PROMPTS)
    assert facts(last["outputs"]) == facts(
        services.generate(services.there, **body | {"model": "tiny"}).json()["outputs"]
    )
    for index, output in enumerate(last["outputs"]):
        each = [piece["text"] for _, piece in pieces if piece["index"] == index]
        assert "".join(each) == output["text"]


SAMPLING: dict[str, Any] = {"temperature": 1.5, "seed": 7, "n": 2, "top_p": 0.9}
EXTRA: dict[str, Any] = {"ignore_eos": True, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": PROMPTS, "max_tokens": 9, "logprobs": 2, **SAMPLING}),
    ("completions", {"prompt": [65, 66, 67], "max_tokens": 9, **SAMPLING}),
    ("completions", {"prompt": "the dog", "echo": True, "temperature": 0}),
    ("completions", {"prompt": "the dog", "temperature": 0, "stop": ["a", "e"], "max_tokens": 60}),
    (
        "chat",
        {
            "messages": [{"role": "developer", "content": "Hi"}, {"role": "user", "content": "ö"}],
            "max_completion_tokens": 9,
            "logprobs": True,
            "top_logprobs": 2,
            **SAMPLING,
        },
    ),
    ("chat", {"messages": [{"role": "user", "content": "the dog"}], "temperature": 0}),
    (
        "chat",
        {
            "messages": [{"role": "user", "content": "the dog"}],
            "max_completion_tokens": 40,
            "response_format": json_schema(PERSON),
            "extra_body": {},  # nothing that ignores the end of the text
            **SAMPLING,
        },
    ),
]


@pytest.mark.parametrize(("route", "body"), ASKED)
def test_the_client_of_openai_sees_no_difference(
    services: Both, route: str, body: dict[str, Any]
) -> None:
    def answers(url: str, model: str) -> tuple[Any, Any]:
        with services.openai(url) as api:
            create: Any = api.completions.create
            if route == "chat":
                create = api.chat.completions.create
            ask = {"model": model, "extra_body": EXTRA, **body}
            options = {"stream": True, "stream_options": {"include_usage": True}}
            return create(**ask), list(create(**ask, **options))

    mine, mine_chunks = answers(services.here, "there")
    each, its_chunks = answers(services.there, "tiny")
    assert mine.model == "there"
    assert plain(mine) == about(plain(each))
    assert joined(mine_chunks) == joined(its_chunks)
    assert mine_chunks[-1].usage == its_chunks[-1].usage == each.usage


def plain(answer: Any) -> Any:
    """All but id, moment, model and what is not known of a model of another server."""
    return answer.model_dump(exclude={"id", "created", "model", "system_fingerprint"})


def about(value: Any) -> Any:
    """Equal to the same with other numbers behind the fourth digit: batches are put together
    differently, and round differently."""
    if isinstance(value, dict):
        return {key: about(each) for key, each in value.items()}
    if isinstance(value, list):
        return [about(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def joined(chunks: list[Any]) -> dict[int, tuple[str, list[str]]]:
    """Text and end of each answer: how it is cut into chunks may differ."""
    found: dict[int, tuple[str, list[str]]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        text, ends = found.get(choice.index, ("", []))
        more = choice.text if hasattr(choice, "text") else choice.delta.content
        ends = [*ends, choice.finish_reason] if choice.finish_reason else ends
        found[choice.index] = (text + (more or ""), ends)
    return found


def test_it_is_counted_as_any_other_model_is(services: Both) -> None:
    services.generate(services.here, prompt=["the dog", "a"], max_new_tokens=6)
    metrics = services.scrape()
    assert metrics.value("sleb_generation_tokens_total", **DENSE) == 12
    there = Scrape(httpx2.get(f"{services.there}/metrics").text)
    for name in ("sleb_prompt_tokens_total", "sleb_generation_tokens_total"):
        labels = {**DENSE, "model_name": "tiny", "engine": "own"}
        assert metrics.value(name, **DENSE) == there.value(name, **labels)
    assert metrics.value("sleb_request_success_total", finished_reason="length", **DENSE) == 2
    for name in (
        "sleb_time_to_first_token_seconds",
        "sleb_request_time_per_output_token_seconds",
        "sleb_e2e_request_latency_seconds",
        "sleb_request_queue_time_seconds",
    ):
        assert metrics.value(f"{name}_count", **DENSE) == 2
    gaps = metrics.value("sleb_inter_token_latency_seconds_count", **DENSE)
    assert 0 < (gaps or 0) <= 10  # between chunks, which may bring more than one token


def test_what_it_refuses_is_refused_here_and_counted_nowhere(services: Both) -> None:
    for is_streamed in (False, True):
        answer = services.generate(services.here, max_new_tokens=10_000, stream=is_streamed)
        assert answer.status_code == 422
        assert answer.json()["type"] == "backend-refused"
        assert "exceeds the context length" in answer.json()["detail"]
        with services.openai(services.here) as api, pytest.raises(openai.BadRequestError) as error:
            api.completions.create(model="there", prompt="a", max_tokens=10_000, stream=is_streamed)
        assert error.value.code == "backend_refused"
    found = services.scrape()
    ended = "sleb_request_success_total"
    assert not any(found.value(ended, **labels) for labels in found.series(ended))


@pytest.mark.parametrize("num_steps", [0, 6], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_frees_its_slots_there(
    settings: ServeSettings, redis_url: str, tmp_path: Path, num_steps: int, is_streamed: bool
) -> None:
    with gated(num_steps) as engine, both(settings, redis_url, tmp_path, engine) as services:
        body = {"model": "there", "prompt": "the dog", "max_new_tokens": 200}
        connection = send(services.here, "/generate", {**body, "stream": is_streamed})
        wait_until(lambda: engine.is_at_gate, "it is being answered")
        connection.close()
        labels = {"finished_reason": "abort", **DENSE}
        wait_until(
            lambda: services.scrape().value("sleb_request_success_total", **labels) == 1,
            "it is given up here",
        )
        wait_until(
            lambda: not services.there_server.server_state.tasks, "no client is connected there"
        )
        engine.gate.set()
        aborted = {**labels, "model_name": "tiny", "engine": "own"}
        wait_until(
            lambda: (
                Scrape(httpx2.get(f"{services.there}/metrics").text).value(
                    "sleb_request_success_total", **aborted
                )
                == 1
            ),
            "and there",
        )
        assert engine.num_steps <= num_steps + 2
        running = services.scrape().value("sleb_external_requests_running", model_name="there")
        assert running == 0


def test_a_full_line_there_is_429_here(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    with gated() as engine, both(settings, redis_url, tmp_path, engine) as services:
        waits = send(services.there, "/generate", {"prompt": ["the dog"] * 12, "max_new_tokens": 2})
        wait_until(lambda: engine.is_at_gate, "all places there are taken")
        for is_streamed in (False, True):
            refused = services.generate(services.here, stream=is_streamed)
            assert refused.status_code == 429
            assert refused.json()["type"] == "backend-overloaded"
            assert int(refused.headers["retry-after"]) >= 1
        rejected = services.scrape().value(
            "sleb_admission_rejections_total", reason="backend_overloaded", **DENSE
        )
        assert rejected == 2
        engine.gate.set()
        waits.close()


def test_a_full_queue_here_is_429_and_sends_nothing(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    limits = {"max_num_seqs": 2, "max_waiting": 1}
    with gated() as engine, both(settings, redis_url, tmp_path, engine, **limits) as services:
        too_many = services.generate(services.here, prompt=["a"] * 4)
        assert too_many.status_code == 422
        assert "this model allows at most 3" in too_many.json()["detail"]
        body = {"model": "there", "prompt": ["a", "b", "c"], "max_new_tokens": 2}
        waits = send(services.here, "/generate", body)

        def load() -> tuple[float | None, float | None]:
            metrics = services.scrape()
            return (
                metrics.value("sleb_external_requests_running", model_name="there"),
                metrics.value("sleb_external_requests_waiting", model_name="there"),
            )

        wait_until(lambda: load() == (2, 1), "two run and one waits")
        refused = services.generate(services.here)
        assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        metrics, full = services.scrape(), {"reason": "queue_full", **DENSE}
        assert metrics.value("sleb_admission_rejections_total", **full) == 1
        engine.gate.set()
        done = {"finished_reason": "length", **DENSE}
        wait_until(
            lambda: services.scrape().value("sleb_request_success_total", **done) == 3,
            "all three are answered, in the two places",
        )
        waits.close()
        assert load() == (0, 0)


def test_a_deadline_ends_it_here_and_there(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    with gated(4) as engine, both(settings, redis_url, tmp_path, engine) as services:
        [output] = services.generate(services.here, max_new_tokens=200, timeout_s=2).json()[
            "outputs"
        ]
        assert output["finish_reason"] == "timeout"
        assert 0 < output["completion_tokens"] < 200
        assert output["text"]
        engine.gate.set()
        wait_until(lambda: services.num_open_there() == 0, "it is given up there")
        labels = {"finished_reason": "timeout", **DENSE}
        assert services.scrape().value("sleb_request_success_total", **labels) == 1


def test_a_shutdown_answers_as_far_as_it_came(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    with gated(4) as engine, both(settings, redis_url, tmp_path, engine) as services:
        answers: list[httpx2.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(services.generate(services.here, max_new_tokens=200))
        )
        asking.start()
        wait_until(lambda: engine.is_at_gate, "it is in the middle of its answer")
        services.here_server.should_exit = True
        asking.join(20)
        [output] = answers[0].json()["outputs"]
        assert output["finish_reason"] == "abort"
        engine.gate.set()


def test_it_is_listed_with_its_lineage(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    manifest = publish_pruned(data_dir)
    removed = list(manifest.removed_blocks)
    url = "http://127.0.0.1:9/v1"
    declare(data_dir, "vllm", url, parent="tiny", removed_blocks=removed)
    declare(data_dir, "vllm-dense", url, num_blocks=6)
    declare(data_dir, "vllm-counted", url, parent="far", num_removed=2, num_blocks=10)
    app = create_app(settings, redis_url=redis_url)
    with LocalClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "ready without them")
        entries = {entry["id"]: entry for entry in client.get("/models").json()["data"]}
        assert [entries[each]["backend"] for each in ("tiny", "vllm")] == ["engine", "openai"]
        pruned, twin = entries["vllm"], entries[manifest.name]
        for name in ("variant", "parent", "num_blocks", "removed_blocks", "perplexity", "losses"):
            assert pruned[name] == twin[name]
        assert pruned["checkpoint"] == manifest.name
        assert not pruned["is_loaded"]
        dense, counted = entries["vllm-dense"], entries["vllm-counted"]
        assert (dense["variant"], dense["parent"], dense["num_blocks"]) == ("dense", None, 6)
        assert (counted["variant"], counted["parent"], counted["num_blocks"]) == (
            "pruned",
            "far",
            10,
        )
        assert counted["removed_blocks"] == []
        assert client.get("/models/vllm").json() == pruned
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert (cards["vllm"]["parent"], cards["vllm-dense"]["parent"]) == ("tiny", None)
        [info] = [
            labels
            for labels in Scrape(client.get("/metrics").text).series("sleb_model_info")
            if labels["model_name"] == "vllm"
        ]
        assert (info["parent"], info["num_blocks"]) == ("tiny", "3")
        assert info["removed_blocks"] == " ".join(map(str, removed))
        for action, status in (("load", 200), ("unload", 204)):
            assert client.post(f"/models/vllm/{action}").status_code == status


def test_a_salt_separates_what_the_other_server_keeps(
    settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    with both(settings, redis_url, tmp_path, takes_cache_salt=True) as services:

        def num_cached(**salt: str) -> int:
            body = {
                "model": "there",
                "prompt": [5] * (2 * PAGE_TOKENS + 3),
                "max_tokens": 1,
                **salt,
            }
            answer = httpx2.post(f"{services.here}/v1/completions", json=body)
            found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        assert [num_cached() for _ in range(2)] == [0, 2 * PAGE_TOKENS]
        assert [num_cached(cache_salt="mine") for _ in range(2)] == [0, 2 * PAGE_TOKENS]


def test_what_needs_token_ids_is_refused(services: Both) -> None:
    answer = services.generate(services.here, return_token_ids=True)
    assert (answer.status_code, answer.json()["type"]) == (422, "no-token-ids")
    assert answer.json()["param"] == "return_token_ids"
    with services.openai(services.here) as api, pytest.raises(openai.BadRequestError) as error:
        api.completions.create(model="there", prompt=[65, 66], echo=True)
    assert error.value.param == "echo"
