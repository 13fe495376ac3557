"""What the API's /metrics says about jobs: what is in the job store, or that it cannot be asked."""

import socket
import time
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from rq.utils import utcformat

from app.config import ServeSettings
from app.main import create_app
from pruning.jobs import transitions
from pruning.jobs.job import HealProgress, JobStatus, Phase
from pruning.jobs.keys import RECORD
from pruning.jobs.stats import TIMEOUT_S
from pruning.jobs.store import JobStore
from pruning.search.state import SearchPlan
from pruning.spec.prune import PruneSpec
from pruning.worker.parent import PruneWorker
from tests.support.exposition import Scrape
from tests.support.job_lives import REMOVAL
from tests.support.serving import LocalClient

pytestmark = pytest.mark.usefixtures("nothing_preloaded")

SPEC = PruneSpec("tiny", num_remove=1)
PROGRESS = "sleb_prune_job_progress_ratio"
FINISH = "sleb_prune_job_estimated_finish_timestamp_seconds"


def scrape(client: TestClient) -> Scrape:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return Scrape(answer.text)


def test_jobs_are_counted_by_state(client: TestClient, job_store: JobStore) -> None:
    for _ in range(3):
        job_store.create(SPEC)
    job_store.cancel(job_store.create(SPEC).id)
    found = scrape(client)
    counts = {status: found.value("sleb_prune_jobs", state=status) for status in JobStatus}
    expected = dict.fromkeys(JobStatus, 0) | {JobStatus.QUEUED: 3, JobStatus.CANCELLED: 1}
    assert counts == expected
    assert found.value("sleb_job_store_up") == 1


def test_a_job_has_series_of_its_own_while_a_worker_has_it(
    client: TestClient, job_store: JobStore
) -> None:
    job_store.create(SPEC)
    job = job_store.start(job_store.create(SPEC).id, "a worker")
    job_store.record(job.id, transitions.searching(SearchPlan("d1g", 1), 0, 8), job.attempt)
    job_store.record(job.id, transitions.evaluated(2, 8), job.attempt)
    found = scrape(client)
    own = {"model_name": "tiny", "job_id": job.id}
    assert found.series(PROGRESS) == [own]
    assert found.value(PROGRESS, **own) == 0.25
    assert found.value("sleb_prune_job_workers_lost", **own) == 0
    job_store.cancel(job.id)  # its worker has still to obey
    assert scrape(client).series(PROGRESS) == [own]
    job_store.succeed(job.id, "tiny@x", job.attempt)
    assert scrape(client).series(PROGRESS) == []


def test_a_search_tells_its_losses_by_round_and_when_it_would_end(
    client: TestClient, job_store: JobStore
) -> None:
    job = job_store.start(job_store.create(SPEC).id, "a worker")
    loss, finish = "sleb_prune_job_loss", FINISH
    own = {"model_name": "tiny", "job_id": job.id}
    assert not scrape(client).series(finish)
    job_store.record(job.id, transitions.searching(SearchPlan("d1g", 1), 0, 8), job.attempt)
    job_store.record(job.id, transitions.evaluated(2, 8), job.attempt)
    job_store.record(job.id, transitions.removed([REMOVAL]), job.attempt)
    found, record = scrape(client), job_store.get(job.id)
    assert found.value(finish, **own) == record.estimated_finish
    losses = [found.value(loss, num_removed=str(number), **own) for number in range(2)]
    assert losses == [record.dense_loss, *record.losses]
    assert len(found.series(loss)) == 2
    job_store.succeed(job.id, "tiny@x", job.attempt)
    assert not scrape(client).series(loss)


def test_a_repair_tells_how_far_it_is_and_when_it_would_end(
    client: TestClient, job_store: JobStore
) -> None:
    job = job_store.start(job_store.create(SPEC).id, "a worker")
    own = {"model_name": "tiny", "job_id": job.id}
    ratio, finish = "sleb_prune_job_repair_ratio", FINISH
    job_store.record(job.id, transitions.phase_begun(Phase.REPAIR), job.attempt)
    assert not scrape(client).series(ratio)
    job_store.record(job.id, transitions.repairing(2, 8), job.attempt)
    found = scrape(client)
    assert found.value(ratio, **own) == 0.25
    assert found.value(finish, **own) == job_store.get(job.id).estimated_finish
    job_store.record(job.id, transitions.phase_begun(Phase.EVALUATE), job.attempt)
    assert not scrape(client).series(finish)


def test_a_healing_tells_its_loss_its_pace_and_when_it_would_end(
    client: TestClient, job_store: JobStore
) -> None:
    job = job_store.start(job_store.create(SPEC).id, "a worker")
    own = {"model_name": "tiny", "job_id": job.id, "training": "healed"}
    job_store.record(job.id, transitions.phase_begun(Phase.HEAL), job.attempt)
    assert not scrape(client).series("sleb_heal_loss")
    progress = HealProgress("healed", 500, 0.25, 1.5, 80.0, 6.0, 2.5)
    job_store.record(job.id, transitions.healing(progress, is_check=True), job.attempt)
    found, record = scrape(client), job_store.get(job.id)
    assert found.value("sleb_heal_loss", **own) == 1.5
    assert found.value("sleb_heal_tokens_per_second", **own) == 80
    assert record.estimated_finish is not None
    assert record.estimated_finish - time.time() == pytest.approx(18, abs=15)
    assert found.value(FINISH, model_name="tiny", job_id=job.id) == record.estimated_finish
    assert job_store.events(job.id, limit=10)[-1].data["heal"]["held_out_loss"] == 2.5


def test_the_age_of_the_queue_is_that_of_the_longest_wait(
    client: TestClient, job_store: JobStore, redis_client: redis.Redis
) -> None:
    def age_s() -> float | None:
        return scrape(client).value("sleb_prune_queue_age_seconds")

    assert age_s() == 0
    jobs = [job_store.create(SPEC) for _ in range(2)]
    for job, since_s in zip(jobs, (100, 20), strict=True):
        redis_client.hset(RECORD.format(id=job.id), "status_since", time.time() - since_s)
    assert age_s() == pytest.approx(100, abs=15)
    job_store.start(jobs[0].id, "a worker")
    assert age_s() == pytest.approx(20, abs=15)
    job_store.requeue(jobs[0].id, "requeued", is_lost=False)  # it waits anew
    assert age_s() == pytest.approx(20, abs=15)


def test_workers_are_counted_while_they_show_signs_of_life(
    client: TestClient, redis_client: redis.Redis
) -> None:
    worker = PruneWorker("worker", redis_client, lease_s=15)
    worker.register_birth()  # type: ignore[no-untyped-call]  # so it is in RQ
    assert scrape(client).value("sleb_prune_workers") == 1
    assert worker.last_heartbeat is not None
    long_ago = worker.last_heartbeat.replace(year=2001)
    redis_client.hset(worker.key, "last_heartbeat", utcformat(long_ago))
    assert scrape(client).value("sleb_prune_workers") == 0


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_scrape_waits_for_no_store(
    settings: ServeSettings, tmp_path: Path, is_silent: bool
) -> None:
    """No process listens there, or one that never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(settings, redis_url=silent if is_silent else f"unix://{tmp_path}/none")
        with LocalClient(app) as client:
            began = time.monotonic()
            found = scrape(client)
            took_s = time.monotonic() - began
    assert found.value("sleb_job_store_up") == 0
    assert "sleb_kv_cache_usage_perc" in found.names
    assert not {name for name in found.names if name.startswith("sleb_prune")}
    assert took_s < TIMEOUT_S * 4
