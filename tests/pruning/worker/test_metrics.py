"""What a worker counts, from the records that its children leave, and the port that shows it."""

import socket
from collections.abc import Sequence
from dataclasses import replace
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from pruning.jobs.job import Job, JobStatus, Pace
from pruning.scraping import MetricsPortUnavailable, metrics_served
from pruning.spec.prune import PruneSpec
from pruning.worker.metrics import WorkerMetrics
from tests.support.exposition import Scrape
from tests.support.waiting import wait_until

JOB = Job(
    id="prn-1",
    model="tiny",
    spec=PruneSpec("tiny", num_remove=1),
    status=JobStatus.RUNNING,
    created_at=0.0,
    attempt=1,
    worker="me",
)
SETTING = "SLEB_WORKER_METRICS_PORT"
EVALUATIONS = "sleb_prune_evaluations_total"
SECONDS = "sleb_prune_evaluation_seconds"


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics("me", lease_s=60)


def scrape(metrics: WorkerMetrics) -> Scrape:
    return Scrape(generate_latest(metrics.registry).decode())


def at(num_evaluations: int, seconds: float, **change: object) -> Job:
    return replace(JOB, pace=Pace(num_evaluations, seconds), **change)  # type: ignore[arg-type]  # by name


def test_every_look_counts_what_is_new(metrics: WorkerMetrics) -> None:
    for job in (at(0, 0), at(3, 1.5), at(3, 1.5), at(8, 5.0)):
        metrics.record_progress(job)
    found = scrape(metrics)
    assert found.value(EVALUATIONS) == found.value(f"{SECONDS}_count") == 8
    assert found.value(f"{SECONDS}_sum") == pytest.approx(5.0)


def test_what_is_counted_has_the_id_of_its_job_as_exemplar(metrics: WorkerMetrics) -> None:
    metrics.record_progress(at(3, 1.5))
    text = openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    [line] = [line for line in text.splitlines() if line.startswith(EVALUATIONS)]
    assert '# {job_id="prn-1"} 3.0' in line


def test_what_another_worker_does_is_not_counted(metrics: WorkerMetrics) -> None:
    for worker in ("another", None):
        metrics.record_progress(at(3, 1.5, worker=worker))
    assert scrape(metrics).value(EVALUATIONS) == 0


def test_a_search_that_begins_anew_in_one_child_is_more_work(metrics: WorkerMetrics) -> None:
    for job in (at(5, 5.0), at(2, 1.0), at(4, 2.0)):
        metrics.record_progress(job)
    found = scrape(metrics)
    assert found.value(EVALUATIONS) == 9
    assert found.value(f"{SECONDS}_sum") == pytest.approx(7.0)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=6))
def test_whatever_the_children_have_done_is_counted_once(children: Sequence[Sequence[int]]) -> None:
    """One list a child, which starts from nothing: how much further it is at every look."""
    metrics = WorkerMetrics("me", lease_s=60)
    for attempt, steps in enumerate(children, start=1):
        done = 0
        for step in steps:
            done += step
            metrics.record_progress(at(done, done * 0.5, attempt=attempt))
    total = sum(sum(steps) for steps in children)
    found = scrape(metrics)
    assert found.value(EVALUATIONS) == total
    assert found.value(f"{SECONDS}_sum") == pytest.approx(total * 0.5)


def test_every_series_is_there_from_the_start(metrics: WorkerMetrics) -> None:
    """Or the first of a kind would not show in a rate."""
    found = scrape(metrics)
    finals = [status for status in JobStatus if status.is_final]
    assert all(found.value("sleb_prune_jobs_ended_total", state=status) == 0 for status in finals)
    for name in ("children_lost", "leases_lost", "leases_expired", "evaluations"):
        assert found.value(f"sleb_prune_{name}_total") == 0


def test_it_is_up_for_as_long_as_its_heartbeats_come() -> None:
    metrics = WorkerMetrics("me", lease_s=0.3)
    assert scrape(metrics).value("sleb_worker_up") == 0
    metrics.heartbeat()
    assert scrape(metrics).value("sleb_worker_up") == 1
    wait_until(lambda: scrape(metrics).value("sleb_worker_up") == 0, "down without heartbeats")


def test_it_is_busy_while_it_has_a_job(metrics: WorkerMetrics) -> None:
    with metrics.busy.track_inprogress():
        assert scrape(metrics).value("sleb_worker_busy") == 1
    assert scrape(metrics).value("sleb_worker_busy") == 0


def test_a_port_shows_them_and_is_free_afterwards(metrics: WorkerMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(MetricsPortUnavailable, match=SETTING),
            metrics_served(metrics.registry, "127.0.0.1", port, SETTING),
        ):
            pass
    for _ in range(2):
        with (
            metrics_served(metrics.registry, "127.0.0.1", port, SETTING),
            urlopen(f"http://127.0.0.1:{port}/metrics") as page,
        ):
            assert Scrape(page.read().decode()).value("sleb_worker_busy") == 0


def test_port_0_is_none(metrics: WorkerMetrics) -> None:
    with metrics_served(metrics.registry, "no such host", 0, SETTING):
        pass
