"""Shadow traffic on tiny real models: what it replays, what it counts, and its controls."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.compare import shadow
from app.compare.shadow import MAX_PAIRS_AT_ONCE
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.scheduling.scheduler import EngineLimits
from pruning.models.store import LoadedModel
from pruning.repair.record import Method
from tests.support.exposition import Scrape
from tests.support.repairs import repair_checkpoint
from tests.support.response_formats import json_schema
from tests.support.serving import local_api
from tests.support.shadow_traffic import (
    LIVE,
    PAIR,
    SHADOW,
    Held,
    Noting,
    body_of,
    counts,
    generate,
    num_done,
    num_dropped,
    scraped,
    served,
    share_of_controls,
    share_of_the_longer,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("_published", "_without_controls")


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


def test_replays_read_in_full_what_live_requests_have_read(client: TestClient) -> None:
    prompt = "the dog and the cat " * 8
    live = generate(client, model="tiny", prompt=prompt)["outputs"][0]
    assert live["prompt_tokens"] > 2 * PAGE_TOKENS
    for number in (1, 2):
        generate(client, prompt=prompt)
        wait_until(lambda: num_done(client) == number, "it was replayed")  # noqa: B023
    scrape = scraped(client)
    assert scrape.value("sleb_prefix_cache_hits_total", model_name="tiny@-2")
    assert scrape.value("sleb_shadow_cached_tokens_total", **PAIR) == 0


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


def test_times_are_those_of_two_replays_that_were_alone(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, held: Held
) -> None:
    redis_client.ping()
    with served(settings, redis_url, held) as (server, client), ThreadPoolExecutor(1) as pool:
        assert client.post("/generate", json=body_of(1, 9)).is_success
        wait_until(lambda: held.num_at_gate, "a replay runs")
        live = pool.submit(client.post, "/generate", json={**body_of(1, 9), "model": "tiny"})
        engine = server.lifespan.state["services"].generation.engine
        wait_until(lambda: engine.admission.num_waiting_tokens, "a live request waits")
        held.gate.set()
        assert live.result(60).is_success
        wait_until(lambda: counts(client) == {"done": 1}, "it was replayed, with an interruption")
        assert "\nsleb_shadow_tpot_seconds_count" not in client.get("/metrics").text

        both = client.post(
            "/generate", json=body_of(2, 9)
        )  # beside one another, but not replayed so
        assert both.is_success
        wait_until(lambda: counts(client) == {"done": 3}, "both were replayed")
        scrape = Scrape(client.get("/metrics").text)
        for labels in (LIVE, SHADOW):
            for name in ("tpot", "prefill"):
                assert scrape.value(f"sleb_shadow_{name}_seconds_count", **labels) == 2
                assert scrape.value(f"sleb_shadow_{name}_seconds_sum", **labels)
        sums = [
            scrape.value("sleb_shadow_tpot_seconds_sum", **each) or 0 for each in (SHADOW, LIVE)
        ]
        shown = scrape.value("sleb_shadow_speedup", **PAIR, time="tpot", bound="ratio")
        assert shown == pytest.approx(sums[0] / sums[1])  # dense over pruned
        assert scrape.value("sleb_shadow_speedup_pairs", **PAIR, time="tpot") == 2


def test_the_models_of_a_pair_come_first_in_turn(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    engine = Noting(EngineLimits(max_num_seqs=2 * MAX_PAIRS_AT_ONCE))
    with served(settings, redis_url, engine) as (_, client):
        for number in range(1, 5):
            assert client.post("/generate", json=body_of(1, 2)).is_success
            wait_until(lambda: counts(client) == {"done": number}, "it was replayed")  # noqa: B023
    firsts, seconds = engine.replayed[::2], engine.replayed[1::2]
    assert firsts == ["tiny@-2", "tiny"] * 2
    assert seconds == ["tiny", "tiny@-2"] * 2


def test_a_control_replays_a_request_twice_on_its_own_model(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_of_controls(monkeypatch, 1.0)

    def num_controls() -> float:
        return scraped(client).value("sleb_shadow_control_done_total", live_model="tiny@-2") or 0

    for number in range(1, 4):
        generate(client, ignore_eos=True)
        wait_until(lambda: num_controls() == number, "it was replayed")  # noqa: B023
    scrape = scraped(client)
    of_live = {"live_model": "tiny@-2"}
    for name in ("tpot", "prefill"):
        low, ratio, high = (
            scrape.value("sleb_shadow_control_speedup", **of_live, time=name, bound=bound) or 0
            for bound in ("low", "ratio", "high")
        )
        assert low < ratio < high
        assert scrape.value("sleb_shadow_control_pairs", **of_live, time=name) == 3
    name = "sleb_shadow_floor_agreement_ratio"
    assert scrape.value(f"{name}_count", **of_live) == scrape.value(f"{name}_sum", **of_live) == 6
    found = {name for name in scrape.names if name.startswith("sleb_shadow_")}
    assert not [name for name in found if scrape.value(name, **PAIR)]  # none of it is compared


@pytest.mark.slow
def test_a_share_of_the_pairs_are_controls(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shadow.CONTROL_SHARE == 0
    share_of_controls(monkeypatch, 0.5)
    numbers = (0.0, 0.0)
    for number in range(1, 31):
        if min(numbers):
            return
        generate(client)
        wait_until(lambda: sum(of_both(client)) == number, "it was replayed")  # noqa: B023
        numbers = of_both(client)
    pytest.fail(f"pairs and controls: {numbers}")


def of_both(client: TestClient) -> tuple[float, float]:
    """The numbers of compared pairs and of controls."""
    controls = scraped(client).value("sleb_shadow_control_done_total", live_model="tiny@-2")
    return num_done(client), controls or 0


@pytest.mark.parametrize("warming_up", ["tiny", "tiny@-2"])
def test_nothing_is_replayed_while_a_variant_is_warming_up(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    warming_up: str,
) -> None:
    redis_client.ping()
    cold = {warming_up}
    monkeypatch.setattr(AsyncEngine, "is_warming_up", lambda _engine, each: each.name in cold)
    engine = Noting(EngineLimits(max_num_seqs=2))
    with served(settings, redis_url, engine) as (_, client):
        assert client.post("/generate", json=body_of(1, 4)).is_success
        wait_until(lambda: counts(client) == {"warming_up": 1}, "it is dropped")
        assert engine.replayed == []
        cold.clear()
        assert client.post("/generate", json=body_of(1, 4)).is_success
        wait_until(lambda: counts(client) == {"warming_up": 1, "done": 1}, "it was replayed")


def test_what_warms_up_during_a_replay_is_not_compared(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_client.ping()
    cold: set[str] = set()
    monkeypatch.setattr(AsyncEngine, "is_warming_up", lambda _engine, each: each.name in cold)
    with served(settings, redis_url, held) as (_, client):
        assert client.post("/generate", json=body_of(1, 4)).is_success
        wait_until(lambda: held.num_at_gate, "a replay runs")
        cold.add("tiny")
        held.gate.set()
        wait_until(lambda: counts(client) == {"warming_up": 1}, "it is dropped")


def test_replays_are_not_counted_as_live(client: TestClient) -> None:
    generate(client)
    wait_until(lambda: num_done(client) == 1, "it was replayed")
    scrape = scraped(client)
    name = "sleb_e2e_request_latency_seconds_count"
    for model, variant in (("tiny", "dense"), ("tiny@-2", "pruned")):
        assert scrape.value(name, model_name=model, variant=variant, traffic="shadow") == 1
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
    "wrong",
    [
        {"shadow_share": 1.1},
        {"shadow_share": -0.1},
        {"shadow_direction": "pruned"},
        {"shadow_share": 0.1, "engine": "vllm", "vllm_servers": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(data_dir: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"(?i){next(iter(wrong))}"):
        ServeSettings(data_dir=data_dir, **wrong)
