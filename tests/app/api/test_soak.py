"""Many requests of every kind leave nothing behind: no slot, no task, no object, no memory."""

import asyncio
import gc
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient
from prometheus_client.samples import Exemplar

from tests.support.api_fixtures import publish_pruned
from tests.support.waiting import wait_until

KINDS: list[tuple[dict[str, Any], int]] = [
    ({}, 200),
    ({"model": "tiny@-2", "temperature": 1.0, "seed": 1, "min_p": 0.1}, 200),
    ({"prompt": ["the dog", "the quick brown fox"], "logprobs": 2}, 200),
    ({"stream": True}, 200),
    ({"max_new_tokens": 40, "stop": ["e", "o", "a", "i"]}, 200),
    ({"max_new_tokens": 200, "timeout_s": 1e-6}, 200),
    ({"model": "tiny@-1", "repetition_penalty": 1.3}, 200),
    ({"max_new_tokens": 10_000}, 422),
    ({"prompt": ["the dog"] * 13}, 422),
]
MAX_GROWTH_BYTES = 24 * 2**20
MAX_RUNS = 4
MAX_NEW_OBJECTS = 250  # less than one a request


def soak(client: TestClient, num_requests: int) -> None:
    """All of them, a few at a time: more than run at once, fewer than are refused."""

    def send(kind: tuple[dict[str, Any], int]) -> None:
        change, status = kind
        body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2, **change}
        answer = client.post("/generate", json=body)
        assert answer.status_code == status, answer.text

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, itertools.islice(itertools.cycle(KINDS), num_requests)))


def num_tasks(client: TestClient) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    assert client.portal is not None
    return client.portal.call(count)


def num_objects() -> int:
    """Without exemplars: every bucket of a histogram that was ever hit keeps its latest one."""
    gc.collect()
    found = gc.get_objects()
    exemplars = [each for each in found if type(each) is Exemplar]
    kept = {id(part) for each in exemplars for part in (each, each.labels, each.timestamp)}
    return sum(id(each) not in kept for each in found)


def rss_bytes() -> int:
    found: int = psutil.Process().memory_info().rss
    return found


def until_flat(run: Callable[[], None]) -> Iterator[int]:
    """Bytes by which the process grew in each run, up to the first that is within the bound.

    A leak is in every run. Memory that the cache takes ahead while idle, and that the allocator
    keeps, is in the first ones.
    """
    for _ in range(MAX_RUNS):
        before = rss_bytes()
        run()
        growth = rss_bytes() - before
        yield growth
        if growth < MAX_GROWTH_BYTES:
            return


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_requests",
    [
        300,
        pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_requests_leave_nothing_behind(
    client: TestClient, data_dir: Path, num_requests: int
) -> None:
    publish_pruned(data_dir)
    soak(client, num_requests // 4)  # whatever is made once is made now
    tasks, objects = num_tasks(client), num_objects()
    growths = list(until_flat(lambda: soak(client, num_requests)))
    services = client.app_state["services"]
    wait_until(lambda: services.generation.engine.stats().num_running == 0, "nothing runs")
    stats = services.generation.engine.stats()
    assert (stats.num_waiting, stats.kv_cache_usage, stats.variants) == (0, 0.0, {})
    assert services.generation.engine.fault is None, "an idle engine checks itself"
    wait_until(lambda: num_tasks(client) <= tasks, "the tasks have ended")
    assert num_objects() - objects < MAX_NEW_OBJECTS * len(growths)
    assert growths[-1] < MAX_GROWTH_BYTES
