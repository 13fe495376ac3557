"""The benchmark of shadow traffic: its verdict, and the replays it counts."""

from pathlib import Path

import httpx2
import pytest
import redis

from app.config import ServeSettings
from benchmarks import shadow
from benchmarks.latencies import Pass, RequestTiming
from benchmarks.servers import Server
from tests.support.api_fixtures import publish_pruned
from tests.support.serving import serving
from tests.support.waiting import wait_until


def turn(seconds: float) -> Pass:
    timings = tuple(RequestTiming(0.0, (seconds / 2, seconds), 2) for _ in range(20))
    return Pass(20 * seconds, timings)


@pytest.mark.parametrize(("with_shadow_s", "holds"), [(1.04, True), (1.06, False), (0.9, True)])
def test_the_promise_is_about_the_95th_percentiles(with_shadow_s: float, holds: bool) -> None:
    found = shadow._report({"off": [turn(1.0), turn(1.0)], "on": [turn(with_shadow_s)] * 2})
    assert found["passes"] is holds
    assert found["ratios"]["e2e_p95"] == found["ratios"]["ttft_p50"] == with_shadow_s
    assert found["seconds"]["off"]["ttft_p95"] == 0.5


@pytest.mark.parametrize(("share_of_controls", "kind"), [(0.0, "done"), (1.0, "control")])
def test_it_waits_for_replays_and_counts_them(
    tiny_models_dir: Path,
    redis_url: str,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    share_of_controls: float,
    kind: str,
) -> None:
    redis_client.ping()
    monkeypatch.setattr("app.compare.shadow.CONTROL_SHARE", share_of_controls)
    publish_pruned(tiny_models_dir.parent)
    settings = ServeSettings(data_dir=tiny_models_dir.parent, shadow_share=1.0, drain_s=0)
    with serving(settings, redis_url) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        server = Server(url, "tiny@-1", takes_ids=True, extra={})
        assert shadow._shadow_counts(server) == {}
        body = {"model": "tiny@-1", "prompt": "the dog", "max_new_tokens": 4}
        for change in ({}, {"temperature": 1.0}):
            httpx2.post(f"{url}/generate", json=body | change).raise_for_status()
        shadow._settle(server, num_requests=2)
        assert shadow._shadow_counts(server) == {kind: 1, "unseeded": 1}
