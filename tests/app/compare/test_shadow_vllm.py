"""Shadow traffic in vLLM: processes of this service that speak vLLM's routes."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.config import ServeSettings
from tests.support.api_fixtures import publish_pruned
from tests.support.serving import LocalClient, local_api
from tests.support.shadow_traffic import (
    PAIR,
    counts,
    generate,
    num_done,
    num_dropped,
    scraped,
    share_of_controls,
)
from tests.support.vllm_program import run_by
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("_published", "_without_controls")
LATENCIES = "sleb_e2e_request_latency_seconds_count"


@pytest.fixture
def _published(data_dir: Path) -> None:
    """A checkpoint of this depth: a depth within another one is exported, by a process."""
    publish_pruned(data_dir, num_remove=2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Every request that any server was sent, one line each."""
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def settings(settings: ServeSettings, tmp_path: Path, log: Path) -> ServeSettings:
    arguments = f"--test-log {log} --test-token-s 0.002"
    return run_by(settings, tmp_path, arguments, preload=("tiny@-2", "tiny"))


@pytest.fixture
def client(settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(settings, redis_url) as client:
        yield client


def logged(log: Path) -> list[dict[str, Any]]:
    """Of streams, without the first tokens of servers that start."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [body for body in found if body.get("stream")]


def test_live_answers_are_replayed_in_turn_and_read_in_full(client: LocalClient, log: Path) -> None:
    for number in range(1, 5):
        generate(client)
        wait_until(lambda: num_done(client) == number, "it was replayed")  # noqa: B023
    bodies = logged(log)
    replayed = [body["model"] for at, body in enumerate(bodies) if at % 3]
    variant, dense = bodies[0]["model"], "tiny"
    assert replayed == [variant, dense, dense, variant] * 2
    assert len({body["cache_salt"] for body in bodies}) == 1 + 8  # that of live ones, and replays
    assert {tuple(body["prompt"]) for body in bodies} == {tuple(bodies[0]["prompt"])}
    scrape = scraped(client)
    assert scrape.value("sleb_shadow_cached_tokens_total", **PAIR) == 0
    assert scrape.value("sleb_shadow_agreement_ratio_sum", **PAIR) == 4
    assert scrape.value("sleb_shadow_speedup_pairs", **PAIR, time="tpot") == 4
    assert scrape.value("sleb_shadow_speedup_pairs", **PAIR, time="prefill") == 4


def test_replays_are_counted_as_shadow_traffic_of_vllm(client: LocalClient) -> None:
    generate(client)
    wait_until(lambda: num_done(client) == 1, "it was replayed")
    scrape = scraped(client)
    for model, variant in (("tiny", "dense"), ("tiny@-2", "pruned")):
        of_model = {"model_name": model, "variant": variant, "engine": "vllm"}
        assert scrape.value(LATENCIES, **of_model, traffic="shadow") == 1
        assert (scrape.value(LATENCIES, **of_model, traffic="live") or 0) == (variant == "pruned")


def test_a_control_asks_one_server_twice(
    client: LocalClient, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_of_controls(monkeypatch, 1.0)
    generate(client)

    def num_controls() -> float:
        return scraped(client).value("sleb_shadow_control_done_total", live_model="tiny@-2") or 0

    wait_until(lambda: num_controls() == 1, "it was replayed")
    assert len({body["model"] for body in logged(log)}) == 1


def test_a_live_request_ends_a_replay(settings: ServeSettings, redis_url: str, log: Path) -> None:
    slow = f"--test-log {log} --test-token-s 0.05"
    with local_api(settings, redis_url, vllm_args=slow) as client, ThreadPoolExecutor(1) as pool:
        generate(client, max_new_tokens=60)
        wait_until(lambda: len(logged(log)) == 2, "a replay runs")
        live = pool.submit(generate, client, model="tiny", max_new_tokens=1)
        assert live.result(100)["outputs"][0]["completion_tokens"] == 1
        wait_until(lambda: counts(client) == {"overload": 1}, "the pair is dropped")
        assert [body["model"] for body in logged(log)][-1] == "tiny"
        assert scraped(client).value(LATENCIES, model_name="tiny", variant="dense",
                                     traffic="shadow", engine="vllm") is None  # fmt: skip


def test_no_server_is_started_for_a_replay(settings: ServeSettings, redis_url: str) -> None:
    with local_api(settings, redis_url, preload=()) as client:
        generate(client)
        wait_until(lambda: num_dropped(scraped(client), "no_counterpart") == 1, "it is dropped")
        assert client.get("/models/tiny").json()["server"] is None


def test_unloading_drops_the_replays_of_a_server(
    settings: ServeSettings, redis_url: str, log: Path
) -> None:
    slow = f"--test-log {log} --test-token-s 0.05"
    with local_api(settings, redis_url, vllm_args=slow) as client:
        generate(client, max_new_tokens=60)
        wait_until(lambda: len(logged(log)) == 2, "a replay runs")
        assert client.post("/models/tiny/unload").status_code == 204
        assert counts(client) == {"unloaded": 1}


def test_replays_beside_another_engine_are_not_timed(
    settings: ServeSettings, redis_url: str, data_dir: Path, log: Path
) -> None:
    shutil.copytree(data_dir / "models" / "tiny", data_dir / "models" / "other")
    both: dict[str, Any] = {
        "engine": "own",
        "vllm_models": ("other",),
        "preload": ("tiny", "other"),
        "vllm_args": f"--test-log {log} --test-token-s 0.05",
    }
    with (
        local_api(settings.model_copy(update=both), redis_url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        beside = pool.submit(generate, client, model="other", max_new_tokens=60)
        wait_until(lambda: bool(logged(log)), "vLLM is busy")
        generate(client)
        wait_until(lambda: num_done(client) == 1, "it was replayed by the engine of this process")
        assert not beside.done()
        assert "\nsleb_shadow_tpot_seconds_count" not in client.get("/metrics").text
        beside.result(100)
        generate(client)
        wait_until(lambda: num_done(client) == 2, "it was replayed again")
        assert scraped(client).value("sleb_shadow_speedup_pairs", **PAIR, time="tpot") == 1
