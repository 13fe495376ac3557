"""Replays keep out of the way of live requests, of unloading, and of the end of the service."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from app.compare.shadow import MAX_PAIRS_AT_ONCE
from app.config import ServeSettings
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import send
from tests.support.shadow_traffic import (
    PAIR,
    REASONS,
    Held,
    body_of,
    counts,
    holding,
    num_dropped,
    served,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("_published", "_without_controls")


@pytest.mark.slow
def test_under_overload_no_live_request_is_lost_and_replays_are_dropped(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    settings = settings.model_copy(update={"max_waiting": 100})
    limits = EngineLimits(max_num_seqs=2)
    body = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 40, "ignore_eos": True}
    number = 24
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_replay_more_than_the_limit_is_dropped_as_busy(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, held: Held
) -> None:
    redis_client.ping()
    with served(settings, redis_url, held) as (_, client):
        assert client.post("/generate", json=body_of(MAX_PAIRS_AT_ONCE + 1, 4)).is_success
        assert counts(client) == {"busy": 1}
        held.gate.set()
        wait_until(lambda: sum(counts(client).values()) == MAX_PAIRS_AT_ONCE + 1, "all have an end")
        assert counts(client) == {"busy": 1, "done": MAX_PAIRS_AT_ONCE}


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
        wait_until(lambda: engine.admission.num_waiting_tokens, "live requests wait")
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
        assert held.num_at_gate < 100  # of 400 tokens: neither replay went on to its end
