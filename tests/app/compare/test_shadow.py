"""Shadow traffic on tiny real models: what it counts, and how it keeps out of the way."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.compare.shadow import MAX_REPLAYS
from app.config import ServeSettings
from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.engine.sequence import TokenEvent
from app.engine.step import NEVER, Interruption
from app.server.serve import ApiServer
from pruning.models.store import LoadedModel
from pruning.repair.record import Method
from tests.support.api_fixtures import publish_pruned
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import send
from tests.support.repairs import repair_checkpoint
from tests.support.response_formats import json_schema
from tests.support.serving import local_api, serving
from tests.support.waiting import wait_until

PAIR = {"live_model": "tiny@-2", "shadow_model": "tiny"}
LIVE = {"variant": "pruned", "traffic": "live", **PAIR}
SHADOW = {"variant": "dense", "traffic": "shadow", **PAIR}
REASONS = ("busy", "overload", "unseeded", "no_counterpart", "unloaded", "error", "stopped")


@pytest.fixture(autouse=True)
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


@pytest.fixture
def settings(settings: ServeSettings) -> ServeSettings:
    return settings.model_copy(update={"shadow_share": 1.0})


def generate(client: TestClient, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 9, **body}
    response = client.post("/generate", json=asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def scraped(client: TestClient) -> Scrape:
    return Scrape(client.get("/metrics").text)


def num_done(client: TestClient, **pair: str) -> float:
    return scraped(client).value("sleb_shadow_done_total", **{**PAIR, **pair}) or 0


def num_dropped(scrape: Scrape, reason: str, live_model: str = "tiny@-2") -> float:
    labels = {"live_model": live_model, "reason": reason}
    return scrape.value("sleb_shadow_dropped_total", **labels) or 0


def counts(client: httpx2.Client) -> dict[str, float]:
    """Replays done, and dropped by reason; without zeros."""
    scrape = Scrape(client.get("/metrics").text)
    done = scrape.value("sleb_shadow_done_total", **PAIR) or 0
    found = {"done": done} | {reason: num_dropped(scrape, reason) for reason in REASONS}
    return {name: number for name, number in found.items() if number}


def share_of_the_longer(ours: list[int], theirs: list[int]) -> float:
    pairs = zip(ours, theirs, strict=False)
    shortest = min(len(ours), len(theirs))
    common = next((at for at, (one, two) in enumerate(pairs) if one != two), shortest)
    return common / max(len(ours), len(theirs))


def test_live_answers_are_replayed_and_compared(client: TestClient) -> None:
    prompts = ["the dog", "the quick brown fox", "naïve"]
    shares, lengths = [], {"live": 0, "shadow": 0}
    for number, prompt in enumerate(prompts, start=1):
        asked = {"prompt": prompt, "return_token_ids": True}
        live = generate(client, **asked)["outputs"][0]["token_ids"]
        wait_until(lambda: num_done(client) == number, "it was replayed")  # noqa: B023
        dense = generate(client, model="tiny", **asked)["outputs"][0]["token_ids"]
        shares.append(share_of_the_longer(live, dense))
        lengths["live"] += len(live)
        lengths["shadow"] += len(dense)
    scrape = scraped(client)
    assert num_done(client) == len(prompts)  # answers of the dense model are not replayed
    assert scrape.value("sleb_shadow_agreement_ratio_count", **PAIR) == len(prompts)
    assert scrape.value("sleb_shadow_agreement_ratio_sum", **PAIR) == pytest.approx(sum(shares))
    for labels in (LIVE, SHADOW):
        tokens = scrape.value("sleb_shadow_answer_tokens_total", **labels)
        assert tokens == lengths[labels["traffic"]]


def test_a_replay_has_the_response_format_of_the_live_request(client: TestClient) -> None:
    asked: dict[str, Any] = {"return_token_ids": True, "max_new_tokens": 60}
    asked |= {"response_format": json_schema({"enum": ["the dog", 12, None]})}
    live = generate(client, **asked)["outputs"][0]["token_ids"]
    wait_until(lambda: num_done(client) == 1, "it was replayed")
    dense = generate(client, model="tiny", **asked)["outputs"][0]["token_ids"]
    scrape = scraped(client)
    share = share_of_the_longer(live, dense)
    assert scrape.value("sleb_shadow_agreement_ratio_sum", **PAIR) == pytest.approx(share)
    assert scrape.value("sleb_shadow_answer_tokens_total", **SHADOW) == len(dense)


def test_times_are_paired_where_both_sides_were_alone(client: TestClient) -> None:
    generate(client, ignore_eos=True)
    wait_until(lambda: num_done(client) == 1, "it was replayed")
    generate(client, ignore_eos=True, prompt=["the dog", "the fox"])  # beside one another
    wait_until(lambda: num_done(client) == 3, "both were replayed")
    scrape = scraped(client)
    for labels in (LIVE, SHADOW):
        for name in ("tpot", "prefill"):
            assert scrape.value(f"sleb_shadow_{name}_seconds_count", **labels) == 1
            assert scrape.value(f"sleb_shadow_{name}_seconds_sum", **labels)


def test_replays_are_not_counted_as_live(client: TestClient) -> None:
    generate(client)
    wait_until(lambda: num_done(client) == 1, "it was replayed")
    scrape = scraped(client)
    name = "sleb_e2e_request_latency_seconds_count"
    of_shadow = {"model_name": "tiny", "variant": "dense", "traffic": "shadow"}
    assert scrape.value(name, **of_shadow) == 1
    assert scrape.value(name, model_name="tiny@-2", variant="pruned", traffic="live") == 1
    assert 'model_name="tiny",traffic="live"' not in client.get("/metrics").text


def test_neither_comparisons_nor_what_was_cut_short_is_replayed(client: TestClient) -> None:
    body = {"models": ["tiny@-2", "tiny@-1"], "prompt": "the dog", "max_new_tokens": 4}
    assert client.post("/compare", json=body).is_success
    cut = generate(client, max_new_tokens=200, timeout_s=1e-6)
    assert cut["outputs"][0]["finish_reason"] == "timeout"
    generate(client)
    wait_until(lambda: num_done(client), "the live one was replayed")  # behind any before it
    assert num_done(client) == 1
    assert num_done(client, live_model="tiny@-1") == 0
    assert "\nsleb_shadow_dropped" not in client.get("/metrics").text


@pytest.mark.parametrize(
    ("direction", "live", "shadow"),
    [("@-2", "tiny", "tiny@-2"), ("tiny@-1", "tiny", "tiny@-1"), ("dense", "tiny@-1", "tiny")],
)
def test_the_direction_says_what_is_replayed_on_what(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    direction: str,
    live: str,
    shadow: str,
) -> None:
    redis_client.ping()
    with local_api(settings, redis_url, shadow_direction=direction) as client:
        for model in ("tiny", "tiny@-1", "tiny@-2"):
            generate(client, model=model)
        pair = {"live_model": live, "shadow_model": shadow}
        wait_until(lambda: num_done(client, **pair) == 1, "it was replayed")
        if direction == "dense":
            last = {"live_model": "tiny@-2", "shadow_model": "tiny"}
            wait_until(lambda: num_done(client, **last) == 1, "the last one was replayed")
        others = client.get("/metrics").text.count("sleb_shadow_done_total{")
        assert others == (2 if direction == "dense" else 1)


@pytest.mark.parametrize(
    ("direction", "live", "replayed"),
    [("@-2+raw", "tiny", "tiny@-2+raw"), ("dense", "tiny@-2+raw", "tiny")],
)
def test_a_replay_may_be_of_the_raw_form(
    settings: ServeSettings,
    redis_url: str,
    data_dir: Path,
    tiny_loaded: LoadedModel,
    direction: str,
    live: str,
    replayed: str,
) -> None:
    methods = [Method.NONE, Method.RIDGE, Method.RIDGE]
    repair_checkpoint(data_dir / "checkpoints" / "tiny@prn-1", tiny_loaded.model, methods)
    settings = settings.model_copy(update={"shadow_direction": direction})
    pair = {"live_model": live, "shadow_model": replayed}
    with local_api(settings, redis_url) as client:
        generate(client, model=live)
        wait_until(lambda: num_done(client, **pair) == 1, "it was replayed")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"temperature": 1.0}, "unseeded"),
        ({"model": "tiny@prn-1"}, None),
        ({"temperature": 1.0, "seed": 3}, None),
        ({"stop": "e"}, None),
    ],
)
def test_only_what_can_be_repeated_is_replayed(
    client: TestClient, body: dict[str, Any], reason: str | None
) -> None:
    live_model = generate(client, **body)["model"]
    if reason is None:
        wait_until(lambda: num_done(client, live_model=live_model) == 1, "it was replayed")
    else:
        assert num_dropped(scraped(client), reason) == 1


def test_a_variant_that_is_not_here_is_no_counterpart(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    settings = settings.model_copy(update={"shadow_direction": "tiny@-9"})
    with local_api(settings, redis_url) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        generate(client, model="tiny")
        wait_until(
            lambda: num_dropped(scraped(client), "no_counterpart", "tiny") == 1, "it is dropped"
        )


def test_without_a_share_nothing_is_replayed(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    settings = settings.model_copy(update={"shadow_share": 0.0})
    with local_api(settings, redis_url) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        generate(client)
        assert "\nsleb_shadow" not in client.get("/metrics").text


@pytest.mark.parametrize(
    "wrong", [{"shadow_share": 1.1}, {"shadow_share": -0.1}, {"shadow_direction": "pruned"}]
)
def test_settings_that_mean_nothing_are_refused(data_dir: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ServeSettings(data_dir=data_dir, **wrong)


@contextmanager
def served(
    settings: ServeSettings, redis_url: str, engine: Engine | None = None
) -> Iterator[tuple[ApiServer, httpx2.Client]]:
    with (
        serving(settings, redis_url, engine=engine) as (server, url),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        wait_until(lambda: client.get("/health/ready").is_success, "the API is ready")
        yield server, client


def test_under_overload_no_live_request_is_lost_and_replays_are_dropped(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    settings = settings.model_copy(update={"max_waiting": 100})
    limits = EngineLimits(max_num_seqs=2)
    body = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 40, "ignore_eos": True}
    number = 48
    with (
        served(settings, redis_url, Engine(limits)) as (_, client),
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(lambda _: client.post("/generate", json=body), range(number)))
        assert [answer.status_code for answer in answers] == [200] * number
        texts = {answer.json()["outputs"][0]["text"] for answer in answers}
        assert len(texts) == 1
        assert {each.json()["outputs"][0]["completion_tokens"] for each in answers} == {40}

        wait_until(lambda: sum(counts(client).values()) == number, "all have an end")
        found = counts(client)
        assert found.keys() <= {"done", "busy", "overload"}
        assert found.get("done", 0) < number


def test_a_client_that_leaves_is_not_replayed(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    body = {"prompt": "the dog", "max_new_tokens": 200}
    with gated(5) as engine, served(settings, redis_url, engine) as (server, client):
        url = str(client.base_url).rstrip("/")
        connection = send(url, "/generate", {**body, "model": "tiny@-2"})
        wait_until(lambda: engine.is_at_gate, "it is being answered")
        connection.close()
        engine.gate.set()
        each = server.lifespan.state["services"].generation.engine
        wait_until(lambda: each.stats().num_running == 0, "the engine is idle")
        text = client.post("/generate", json={"model": "tiny@-2", "prompt": "a"}).json()
        assert text["outputs"][0]["finish_reason"] in ("length", "stop")
        wait_until(
            lambda: Scrape(client.get("/metrics").text).value("sleb_shadow_done_total", **PAIR),
            "the other one was replayed",
        )
        scrape = Scrape(client.get("/metrics").text)
        assert scrape.value("sleb_shadow_done_total", **PAIR) == 1
        assert sum(num_dropped(scrape, reason) for reason in REASONS) == 0


class Held(Engine):
    """Its background steps wait for the gate."""

    def __init__(self, max_num_seqs: int = 2 * MAX_REPLAYS) -> None:
        super().__init__(EngineLimits(max_num_seqs=max_num_seqs))
        self.gate = threading.Event()
        self.num_at_gate = 0

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        if self.has_work and not self.has_live_work:
            self.num_at_gate += 1
            self.gate.wait()
        return super().step(interruption)


@contextmanager
def holding(engine: Held) -> Iterator[Held]:
    try:
        yield engine
    finally:
        engine.gate.set()


@pytest.fixture
def held() -> Iterator[Held]:
    with holding(Held()) as engine:
        yield engine


def body_of(num_prompts: int, max_new_tokens: int) -> dict[str, Any]:
    prompts = [f"the dog {number}" for number in range(num_prompts)]
    limits = {"max_new_tokens": max_new_tokens, "ignore_eos": True}
    return {"model": "tiny@-2", "prompt": prompts, **limits}


def test_one_replay_more_than_the_limit_is_dropped_as_busy(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, held: Held
) -> None:
    redis_client.ping()
    with served(settings, redis_url, held) as (_, client):
        assert client.post("/generate", json=body_of(MAX_REPLAYS + 1, 4)).is_success
        assert counts(client) == {"busy": 1}
        held.gate.set()
        wait_until(lambda: sum(counts(client).values()) == MAX_REPLAYS + 1, "all have an end")
        assert counts(client) == {"busy": 1, "done": MAX_REPLAYS}


def test_live_requests_that_wait_for_a_slot_stop_the_replay_that_runs(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with (
        holding(Held(max_num_seqs=1)) as held,
        served(settings, redis_url, held) as (server, client),
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.post("/generate", json=body_of(1, 100)).is_success
        wait_until(lambda: held.num_at_gate, "a replay runs")
        live = pool.submit(client.post, "/generate", json=body_of(2, 4))
        engine = server.lifespan.state["services"].generation.engine
        wait_until(lambda: engine.num_waiting_tokens, "live requests wait")
        held.gate.set()
        assert live.result(60).is_success
        wait_until(lambda: sum(counts(client).values()) == 3, "all have an end")
        assert counts(client) == {"overload": 1, "done": 2}


def test_no_replay_begins_while_live_requests_wait_for_a_slot(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with (
        gated(num_free=1, max_num_seqs=1) as engine,
        served(settings, redis_url, engine) as (_, client),
        ThreadPoolExecutor(1) as pool,
    ):
        live = pool.submit(client.post, "/generate", json=body_of(3, 1))  # one ends with each step
        wait_until(lambda: counts(client) == {"overload": 1}, "the replay of the first is dropped")
        engine.gate.set()
        assert live.result(60).is_success
        wait_until(lambda: sum(counts(client).values()) == 3, "all have an end")
        assert counts(client) == {"overload": 1, "done": 2}


def test_the_end_of_the_service_waits_for_no_replay(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, held: Held
) -> None:
    redis_client.ping()
    settings = settings.model_copy(update={"drain_s": 1000.0})
    with served(settings, redis_url, held) as (server, client):
        body = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 200, "ignore_eos": True}
        assert client.post("/generate", json=body).is_success
        wait_until(lambda: held.num_at_gate, "a replay runs")
        server.should_exit = True
        services = server.lifespan.state["services"]
        wait_until(lambda: services.readiness.is_draining, "it drains")
        held.gate.set()
    # the context ends only with the server, within 30 s, where a drain may take 1000
    value = services.metrics.registry.get_sample_value
    assert value("sleb_shadow_dropped_total", {"live_model": "tiny@-2", "reason": "stopped"}) == 1


def test_a_model_is_unloaded_under_its_replays(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, held: Held
) -> None:
    redis_client.ping()
    with served(settings, redis_url, held) as (_, client), ThreadPoolExecutor(1) as pool:
        body = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 200, "ignore_eos": True}
        assert client.post("/generate", json=body).is_success
        wait_until(lambda: held.num_at_gate, "a replay runs")
        unloading = pool.submit(client.post, "/models/tiny/unload")
        wait_until(lambda: not client.get("/models/tiny").json()["is_loaded"], "it is let go")
        with pytest.raises(TimeoutError):  # not before the step that holds the weights is over
            unloading.result(0.3)
        held.gate.set()
        assert unloading.result(30).status_code == 204
        assert num_dropped(Scrape(client.get("/metrics").text), "unloaded") == 1
