"""Two Ray nodes on this machine with a replica each; replicas and nodes die under load."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import httpx2
import psutil
import pytest

from tests.support.clusters import LONG, MODEL, Many, Service, service_on
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("nodes")
    with service_on(directory, 2, replicas=2, replica_cpus=1.0) as service:
        yield service


def nodes_of(pids: set[int]) -> set[int]:
    """The processes that act as the nodes and start all others there."""
    return {psutil.Process(pid).ppid() for pid in pids}


def wait_for_both(service: Service, but: set[int]) -> None:
    """Wait for two replicas, neither of which is one of these."""

    def is_so() -> bool:
        return len(service.pids) == 2 and not service.pids & but

    wait_until(is_so, "the replica was replaced", 180)


def busy(service: Service) -> set[int]:
    running = service.metric("sleb_num_requests_running")
    return {int(name.rpartition("-")[2]) for name, number in running.items() if number}


def last_event(service: Service) -> tuple[str, str]:
    """The kind and the data of the last event of a stream."""
    ask = {**MODEL, "prompt": "the dog", "max_new_tokens": LONG, "stream": True}
    answer = httpx2.post(f"{service.url}/generate", json=ask, timeout=90)
    assert answer.status_code == 200
    kind, _, data = answer.text.strip().split("\n\n")[-1].partition("\ndata: ")
    return kind, data


def test_each_machine_has_a_replica(service: Service) -> None:
    assert len(nodes_of(service.pids)) == 2


def test_a_killed_replica_fails_no_request_and_is_replaced(service: Service) -> None:
    before = service.pids
    many = Many([partial(service.generate, "the dog", LONG)] * 12)
    wait_until(lambda: busy(service) == before, "both are at work")
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    answers = many.results()
    assert [answer.status_code for answer in answers] == [200] * 12
    assert len({answer.json()["outputs"][0]["text"] for answer in answers}) == 1
    wait_for_both(service, {victim})
    after = Many([partial(service.generate, "the dog", 9)] * 8).results()
    assert [answer.status_code for answer in after] == [200] * 8


def test_a_stream_that_had_begun_ends_with_an_error(service: Service) -> None:
    before = service.pids
    many = Many([partial(last_event, service)] * 6)
    wait_until(lambda: busy(service) == before, "each replica streams")
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    ends = many.results()
    assert {kind for kind, _ in ends} == {"event: done", "event: error"}
    assert all("replica-lost" in data for kind, data in ends if kind == "event: error")
    wait_for_both(service, {victim})


def test_a_frozen_replica_is_found_out_and_fails_no_request(service: Service) -> None:
    before = service.pids
    victim = min(before)
    many = Many([partial(service.generate, "the dog", LONG)] * 8)
    wait_until(lambda: busy(service) == before, "both are at work")
    os.kill(victim, signal.SIGSTOP)
    assert service.client.get("/health/ready").status_code == 200
    assert service.pids == before - {victim}
    assert [answer.status_code for answer in many.results(240)] == [200] * 8
    wait_for_both(service, {victim})


def test_with_all_replicas_gone_requests_wait_for_the_first_that_is_back(service: Service) -> None:
    before = service.pids
    many = Many([partial(service.generate, "the dog", LONG)] * 8)
    wait_until(lambda: busy(service) == before, "both are at work")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    ready = partial(service.client.get, "/health/ready")
    wait_until(lambda: ready().status_code == 503, "no replica is ready")
    assert [answer.status_code for answer in many.results()] == [200] * 8
    wait_for_both(service, before)


def test_a_lost_machine_fails_no_request(service: Service) -> None:
    assert service.nodes is not None
    (worker,) = service.nodes.worker_nodes
    raylet = worker.all_processes["raylet"][0].process.pid
    (victim,) = (pid for pid in service.pids if psutil.Process(pid).ppid() == raylet)
    many = Many([partial(service.generate, "the dog", LONG)] * 8)
    wait_until(lambda: len(busy(service)) == 2, "both are at work")
    service.nodes.remove_node(worker, allow_graceful=False)
    assert [answer.status_code for answer in many.results()] == [200] * 8
    replacement = service.nodes.add_node(num_cpus=1)
    wait_for_both(service, {victim})
    service.nodes.remove_node(replacement)  # what this test has started, no later one may need
