"""A server that drains answers the requests that it has, and accepts no others."""

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import redis

from app.config import ServeSettings
from tests.support.processes import (
    is_ready,
    processes_of,
    serve_process,
)
from tests.support.serving import serving
from tests.support.waiting import wait_until

NUM_REQUESTS = 4
NUM_NEW = 200
BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": NUM_NEW, "ignore_eos": True}


def begin(client: httpx2.Client, pool: ThreadPoolExecutor) -> list[Future[httpx2.Response]]:
    """Requests of which the server has taken every one, and finished none."""
    found = [pool.submit(client.post, "/generate", json=BODY) for _ in range(NUM_REQUESTS)]
    wait_until(lambda: num_open(client) == NUM_REQUESTS, "all requests are in the engine")
    return found


def num_open(client: httpx2.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    names = ("sleb_num_requests_running{", "sleb_num_requests_waiting{")
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(names))


def test_sigterm_loses_no_request_and_says_so_before_the_server_ends(data_dir: Path) -> None:
    settings = {"max_num_seqs": "1", "threads": "1", "drain_s": "60"}
    with (
        serve_process(data_dir, **settings) as (process, client),
        ThreadPoolExecutor(NUM_REQUESTS) as pool,
    ):
        begun = begin(client, pool)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(client), "it says that it is draining")
        told = httpx2.get(f"{client.base_url}/health/ready")  # by a new connection
        assert (told.status_code, told.json()["detail"]) == (503, "draining")
        late = client.post("/generate", json={**BODY, "max_new_tokens": 1})
        assert late.status_code == 503
        assert int(late.headers["retry-after"]) >= 1
        assert num_open(client) > 0
        for answer in [future.result() for future in begun]:
            assert answer.status_code == 200
            [output] = answer.json()["outputs"]
            assert (output["finish_reason"], output["completion_tokens"]) == ("length", NUM_NEW)
        assert process.wait(30) == 0
    wait_until(lambda: processes_of(data_dir) == [], "Valkey has ended")


def test_what_is_not_done_at_the_deadline_is_answered_as_far_as_it_came(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    hasty = settings.model_copy(update={"drain_s": 0.2, "max_num_seqs": 1, "max_waiting": 8})
    with (
        serving(hasty, redis_url) as (server, url),
        httpx2.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(NUM_REQUESTS) as pool,
    ):
        wait_until(lambda: is_ready(client), "the API is ready")
        begun = begin(client, pool)
        server.should_exit = True
        outputs = [future.result().json()["outputs"][0] for future in begun]
        assert "abort" in {output["finish_reason"] for output in outputs}
        for output in outputs:
            is_whole = output["completion_tokens"] == NUM_NEW
            assert output["finish_reason"] == ("length" if is_whole else "abort")


@pytest.mark.parametrize("drain_s", [0.0, 30.0])
def test_an_idle_server_ends_at_once(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, drain_s: float
) -> None:
    redis_client.ping()
    patient = settings.model_copy(update={"drain_s": drain_s})
    with (
        serving(patient, redis_url) as (server, url),
        httpx2.Client(base_url=url) as client,
    ):
        wait_until(lambda: is_ready(client), "the API is ready")
        server.should_exit = True
        wait_until(lambda: has_ended(client), "it has ended", 10)


def has_ended(client: httpx2.Client) -> bool:
    try:
        client.get("/health/live")
    except httpx2.TransportError:
        return True
    return False
