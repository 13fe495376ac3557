"""Mixed traffic on real processes, while workers are killed and Redis goes away repeatedly.

`make soak MINUTES=30`. Each disturbance happens once a minute.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import httpx2
import pytest
import redis
from rich.console import Console

from tests.soak.duration import DURATION_S, MAX_GROWTH_BYTES, MIB, growth
from tests.soak.jobs import JobsClient, jobs
from tests.soak.service import AWAY_S, Service, running
from tests.soak.tally import Tally
from tests.soak.traffic import KINDS, ask, traffic
from tests.support.redis_fixtures import disorder
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

MAX_NEW_FILES = 40  # connections to Redis are kept; a leak of client connections would be thousands
_POLL_S = 0.5
_WORKER_AT, _STORE_AT = 0.25, 0.6  # share of each period
_PERIOD_S = 60.0
_KILL_DELAY_S = 12.0  # a kill waits this long for a running job
_MAX_FAILURES = 5  # then the test stops

Disturbance = tuple[float, Callable[[Service], None]]


def disturbances() -> list[Disturbance]:
    """Disturbances with their earliest times, in seconds since the start."""
    period_s = min(_PERIOD_S, DURATION_S)
    found: list[Disturbance] = []
    for number in range(int(DURATION_S // period_s)):
        away_s = (number + _STORE_AT) * period_s
        found.append(((number + _WORKER_AT) * period_s, Service.kill_worker))
        found.append((away_s, Service.take_store_away))
        found.append((away_s + AWAY_S, Service.bring_store_back))
    return found


def soak(service: Service, tally: Tally) -> list[int]:
    """Run all disturbances, and return samples of the memory of the API in bytes."""
    began_s, pending = time.monotonic(), disturbances()
    found: list[int] = []
    while (now_s := time.monotonic() - began_s) < DURATION_S or pending:
        wait_until(lambda: time.monotonic() - began_s >= now_s + _POLL_S, "the next sample")
        found.append(service.rss_bytes)
        if pending and _is_time(*pending[0], now_s, service):
            pending.pop(0)[1](service)
        if len(tally.failures) >= _MAX_FAILURES and not service.may_lack_store(time.monotonic()):
            break
    return found


def _is_time(
    due_s: float, happen: Callable[[Service], None], now_s: float, service: Service
) -> bool:
    if happen is Service.kill_worker and not service.has_child():
        return now_s >= due_s + _KILL_DELAY_S
    return now_s >= due_s


def warm_up(service: Service, client: JobsClient, tally: Tally) -> None:
    """Run a job, which publishes a pruned model, and one request of each kind."""
    client.submit()
    client.wait_for_all()
    with httpx2.Client(base_url=service.url) as http:
        wait_until(lambda: http.get("/models/tiny@-2").is_success, "the pruned model is there")
        for kind in KINDS:
            ask(kind, http, Random(0), tally)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 900)
def test_mixed_traffic_while_workers_are_killed_and_redis_goes_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "models" / "tiny")
    tally = Tally()
    with running(tmp_path) as service, closing(JobsClient(service, tally)) as client:
        warm_up(service, client, tally)
        tasks, files = service.tasks(), service.num_files()
        with traffic(service.url, tally), jobs(client, tally):
            rss_bytes = soak(service, tally)
        client.wait_for_all()
        client.check_all()
        client.close()  # releases its connection
        first, last = growth(rss_bytes)
        with capsys.disabled():
            happened = Counter(service.disturbances).items()
            disturbed = "; ".join(f"{number} × {what}" for what, number in happened)
            memory = f"API: {first / MIB:.0f} MiB when warm, {last / MIB:.0f} MiB at the end"
            accepted = f"{len(client.accepted)} jobs accepted"
            table = tally.table(f"{DURATION_S:g} s")
            Console(width=100).print(table, accepted, disturbed, memory, sep="\n")
        assert not tally.failures
        wait_until(lambda: not service.taken(), f"no slot is taken: {service.taken()}")
        service.check_health()
        wait_until(lambda: len(service.tasks()) <= len(tasks), "all tasks have ended")
        wait_until(lambda: not service.num_clients(), "all connections are closed")
        assert service.num_files() - files < MAX_NEW_FILES
        with redis.Redis.from_url(service.valkey.url) as store:
            assert disorder(store) == []
        assert last - first < MAX_GROWTH_BYTES
