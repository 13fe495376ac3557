"""The job store on a real server: records, lists, events and what happens without a server."""

from collections.abc import Callable

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pruning.jobs import transitions
from pruning.jobs.job import (
    Job,
    JobError,
    JobNotFound,
    JobStatus,
    Phase,
    RepairProgress,
)
from pruning.jobs.keys import INDEX, RECORD
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset, Sampling
from pruning.spec.prune import PruneSpec
from tests.support.job_lives import ERROR, SPEC, messages, removals
from tests.support.redis_fixtures import disorder

# ---- the record


def test_a_new_job_is_queued_and_reads_back_equal(job_store: JobStore) -> None:
    calibration = CalibrationSpec(Dataset.SELF, sampling=Sampling.ROWS, num_samples=3, seqlen=7)
    spec = PruneSpec(model="tiny", sparsity=0.1, calibration=calibration, evaluate=False)
    job = job_store.create(spec, {"für": "Größe 😀", "empty": ""})
    assert job_store.get(job.id) == job
    assert (job.status, job.attempt, job.num_lost, job.phase) == (JobStatus.QUEUED, 0, 0, None)
    assert (job.spec, job.model) == (spec, "tiny")
    assert job.metadata == {"für": "Größe 😀", "empty": ""}
    assert messages(job_store, job.id) == ["job created"]


def test_the_life_of_a_job(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    started = job_store.start(job_id, "worker-1")
    assert (started.status, started.worker, started.attempt) == (JobStatus.RUNNING, "worker-1", 1)
    for phase in Phase:
        job_store.record(job_id, transitions.phase_begun(phase))
        if phase is Phase.SEARCH:
            job_store.record(job_id, transitions.evaluated(7, 20))
            job_store.record(job_id, transitions.removed(removals(1)))
            job_store.record(job_id, transitions.removed(removals(2)))
        if phase is Phase.REPAIR:
            assert job_store.get(job_id).repair_progress is None
            job_store.record(job_id, transitions.repairing(3, 30))
    assert job_store.succeed(job_id, "tiny@x") is JobStatus.SUCCEEDED
    job = job_store.get(job_id)
    assert (job.phase, job.pruned_model, job.progress.ratio) == (Phase.PUBLISH, "tiny@x", 0.35)
    assert job.repair_progress == RepairProgress(3, 30)
    assert (job.removed_blocks, job.dense_loss) == ((10, 11), 3.7)
    assert job.losses == (0.1, 0.1 + 0.2)  # not a digit lost
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at
    assert job.error is None


def test_removals_may_be_written_twice_and_heal_one_that_was_missed(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.record(job_id, transitions.removed(removals(1)))
    job_store.record(job_id, transitions.removed(removals(3)))
    job_store.record(job_id, transitions.removed(removals(3)))
    assert job_store.get(job_id).removed_blocks == (10, 11, 12)


def test_a_failed_job_says_why(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.fail(job_id, ERROR)
    job = job_store.get(job_id)
    assert (job.status, job.error) == (JobStatus.FAILED, ERROR)
    assert job_store.events(job_id)[-1].level == "error"


@pytest.mark.parametrize(
    ("message", "read"),
    [("Größe \0 😀", "Größe \0 😀"), ("no text: \udc80", "no text: \\udc80")],
)
def test_any_message_can_be_recorded(job_store: JobStore, message: str, read: str) -> None:
    job_id = job_store.create(SPEC).id
    job_store.fail(job_id, JobError("internal_error", message))
    error = job_store.get(job_id).error
    assert error is not None
    assert error.message == read


def test_the_estimated_finish_follows_the_pace_of_the_search() -> None:
    fields = {
        "id": "prn-1",
        "spec": '{"model": "m", "num_remove": 1, "calibration": '
        '{"dataset": "self", "sampling": "windows"}}',
        "status": "running",
        "created_at": "50.0",
        "phase": "search",
        "search_started_at": "100.0",
        "evaluated_at": "110.0",
        "evaluations_done": "5",
        "evaluations_total": "20",
    }
    assert Job.from_fields(fields).estimated_finish == 140.0
    for too_few in ("0", "2"):
        few = {**fields, "evaluations_done": too_few}
        assert Job.from_fields(few).estimated_finish is None
    assert Job.from_fields({**fields, "phase": "evaluate"}).estimated_finish is None
    assert Job.from_fields({**fields, "finished_at": "111"}).estimated_finish is None


def test_the_estimated_finish_follows_the_pace_of_the_repair() -> None:
    fields = {
        "id": "prn-1",
        "spec": '{"model": "m", "num_remove": 1}',
        "status": "running",
        "created_at": "50.0",
        "phase": "repair",
        "phase_started_at": "100.0",
        "evaluated_at": "90.0",
        "evaluations_done": "5",
        "evaluations_total": "5",
        "repair_steps_done": "4",
        "repair_steps_total": "16",
        "repaired_at": "110.0",
    }
    job = Job.from_fields(fields)
    assert (job.estimated_finish, job.progress.ratio) == (140.0, 1.0)
    assert job.repair_progress is not None
    assert job.repair_progress.ratio == 0.25
    assert Job.from_fields({**fields, "phase": "evaluate"}).estimated_finish is None
    assert Job.from_fields({**fields, "finished_at": "111"}).estimated_finish is None
    assert Job.from_fields({**fields, "repair_steps_done": "2"}).estimated_finish is None
    begun = {**fields, "repair_steps_done": "", "repair_steps_total": "", "repaired_at": ""}
    assert Job.from_fields(begun).estimated_finish is None
    assert Job.from_fields(begun).repair_progress is None


def test_the_repair_begins_anew_with_every_worker(job_store: JobStore) -> None:
    """What it did is lost with a worker, and does not count as progress of the job."""
    job_id = job_store.create(SPEC).id
    for number in (1, 2):
        attempt = job_store.start(job_id, "w").attempt
        job_store.record(job_id, transitions.phase_begun(Phase.REPAIR), attempt)
        assert job_store.get(job_id).repair_progress is None
        job_store.record(job_id, transitions.repairing(2, 8), attempt)
        assert job_store.get(job_id).repair_progress == RepairProgress(2, 8)
        assert job_store.get(job_id).num_lost == number - 1
    told = [event for event in job_store.events(job_id) if "repair_steps_done" in event.data]
    assert [event.message for event in told] == ["repair: 2 of 8 steps"] * 2


# ---- finding jobs


def test_ids_are_safe_in_paths_and_urls_and_sort_by_creation(job_store: JobStore) -> None:
    ids = [job_store.create(SPEC).id for _ in range(50)]
    assert ids == sorted(set(ids))
    assert all(job_id.startswith("prn-") and len(job_id) < 40 for job_id in ids)
    assert all(job_id.replace("-", "").isalnum() and job_id == job_id.lower() for job_id in ids)


@pytest.mark.parametrize("job_id", ["", "prn-1", "../../etc", "prn-" + "0" * 21, "x:events", "é"])
def test_there_is_no_such_job(job_store: JobStore, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        job_store.get(job_id)
    with pytest.raises(JobNotFound):
        job_store.cancel(job_id)
    with pytest.raises(JobNotFound):
        job_store.events(job_id)


def test_pages_are_newest_first_and_complete(job_store: JobStore) -> None:
    ids = [job_store.create(SPEC).id for _ in range(23)]
    seen: list[str] = []
    page = job_store.list(limit=10)
    while page.has_more:
        seen += [job.id for job in page.jobs]
        page = job_store.list(limit=10, after=seen[-1])
    seen += [job.id for job in page.jobs]
    assert seen == ids[::-1]
    assert job_store.list(limit=23).has_more is False
    with pytest.raises(JobNotFound):
        job_store.list(after="nonsense")


def test_list_and_counts_by_status(job_store: JobStore) -> None:
    ids = [job_store.create(SPEC).id for _ in range(4)]
    job_store.start(ids[0], "w")
    job_store.cancel(ids[1])
    running = job_store.list(status=JobStatus.RUNNING)
    assert [job.id for job in running.jobs] == [ids[0]]
    assert job_store.ids(JobStatus.QUEUED) == (ids[2], ids[3])
    counts = dict.fromkeys(JobStatus, 0)
    counts |= {JobStatus.RUNNING: 1, JobStatus.CANCELLED: 1, JobStatus.QUEUED: 2}
    assert job_store.counts() == counts


# ---- events, keys, outages


def test_events_tell_the_story_and_page(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.record(job_id, transitions.removed(removals(1)))
    job_store.succeed(job_id, "tiny@x")
    events = job_store.events(job_id)
    assert [event.message for event in events] == [
        "job created",
        "started by w",
        "removed block 10",
        "published tiny@x",
    ]
    assert events[2].type == "metrics"
    assert events[2].data["block"] == 10
    assert [event.data["status"] for event in events] == [
        "queued",
        "running",
        "running",
        "succeeded",
    ]
    assert job_store.events(job_id, after=events[1].id, limit=1) == (events[2],)


def test_a_long_search_has_an_event_per_percent_and_no_more(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    for done in range(2001):
        job_store.record(job_id, transitions.evaluated(done, 2000))
    assert job_store.get(job_id).progress.evaluations_done == 2000
    assert len(job_store.events(job_id, limit=1000)) == 2 + 101


def test_the_stream_of_events_is_bounded(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    for _ in range(1300):
        job_store.record(job_id, transitions.phase_begun(Phase.LOAD))
    assert 1000 <= len(job_store.events(job_id, limit=5000)) <= 1100


@pytest.mark.parametrize(
    ("forget", "word"),
    [
        (lambda client, _id: client.set("sleb:forgotten", 1), "sleb:forgotten has neither"),
        (lambda client, id_: client.delete(RECORD.format(id=id_)), "events belongs to no job"),
        (lambda client, id_: client.zrem(INDEX, id_), "sleb:jobs is wrong"),
        (lambda client, id_: client.zadd("sleb:jobs:queued", {id_: 0}), "queued is wrong"),
    ],
)
def test_what_would_be_left_behind_is_found_after_every_test(
    redis_client: redis.Redis,
    job_store: JobStore,
    forget: Callable[[redis.Redis, str], object],
    word: str,
) -> None:
    job_id = job_store.create(SPEC).id
    job_store.cancel(job_id)
    redis_client.set("sleb:expires", 1, ex=60)
    assert disorder(redis_client) == []
    forget(redis_client, job_id)
    assert word in " ".join(disorder(redis_client))
    redis_client.flushdb()


def test_without_a_server_there_is_one_kind_of_error() -> None:
    with redis.Redis(unix_socket_path="/nowhere.sock", retry=Retry(NoBackoff(), 0)) as client:
        store = JobStore(client)
        job_id = "prn-" + "0" * 21
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.create(SPEC),
            lambda: store.get(job_id),
            store.list,
            store.counts,
            lambda: store.ids(JobStatus.QUEUED),
            lambda: store.cancel(job_id),
            lambda: store.start(job_id, "w"),
        )
        for call in calls:
            with pytest.raises(JobStoreUnavailable):
                call()
