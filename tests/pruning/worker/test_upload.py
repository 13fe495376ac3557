"""Published checkpoints go to the object store, and from there to a service on another disk."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion, Retention, RetentionPeriods
from pruning.jobs.job import Job, JobStatus, Sink
from pruning.jobs.keys import SINK, WITHDRAWN
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from pruning.storage.cache import CheckpointCache
from pruning.storage.checkpoints import StoredCheckpoints
from pruning.storage.store import ObjectStore, StoreDenied, StoreUnavailable
from pruning.worker.senders import CheckpointUpload
from pruning.worker.sinks import SinkThread
from tests.support.checkpoints import FILES, published
from tests.support.clock import Clock
from tests.support.deaths import Death, When, kill_at
from tests.support.exposition import Scrape
from tests.support.job_lives import messages
from tests.support.job_waits import wait_for_status
from tests.support.object_stores import ObservedStore, folder_store
from tests.support.processes import free_port
from tests.support.serving import local_api
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

SPEC = PruneSpec(
    model="tiny", num_remove=2, calibration=CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=16)
)


@pytest.mark.slow
def test_a_job_is_served_by_a_service_that_shares_nothing_but_the_stores(
    workers: Workers,
    redis_client: redis.Redis,
    redis_url: str,
    job_store: JobStore,
    tiny_models_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert tiny_models_dir.parent == workers.data_dir
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    store_url = f"file://{elsewhere}/store"
    workers.checkpoint_store = store_url
    job = job_store.create(SPEC)
    PruneQueue(redis_client).enqueue(job.id)
    workers.start(port := free_port())
    wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    wait_until(lambda: job_store.get(job.id).sinks[Sink.STORE].is_sent, "uploaded")
    wait_until(lambda: attempts(port, "sent") == 1, "a metric of the upload")
    assert attempts(port, "failed") == 0
    name = f"tiny@{job.id}"
    assert messages(job_store, job.id)[-1].startswith(f"uploaded to {store_url}/{name}: ")
    here = CheckpointStore(workers.data_dir / "checkpoints")
    settings = ServeSettings(data_dir=elsewhere / "data", checkpoint_store=store_url, drain_s=0)
    with local_api(settings, redis_url) as client:
        wait_until(lambda: name in _models(client), "the checkpoint listed")
        answer = client.post("/generate", json={"model": name, "prompt": "ab", "max_new_tokens": 4})
        assert answer.status_code == 200, answer.text
        shown = client.get(f"/prune-jobs/{job.id}").json()
        assert [sink["url"] for sink in shown["sinks"]] == [f"{store_url}/{name}"]
        files = client.get(f"/prune-jobs/{job.id}/checkpoints").json()["data"][0]["files"]
        assert {file["name"] for file in files} >= here.manifest(name).files.keys()
        loaded = client.get(f"/prune-jobs/{job.id}/checkpoints/model.safetensors").content
        assert loaded == (here.path(name) / "model.safetensors").read_bytes()
        assert client.delete(f"/prune-jobs/{job.id}").status_code == 204
        assert name not in _models(client)
    assert folder_store(elsewhere / "store").versions() == {}
    assert list((elsewhere / "store" / "objects").iterdir()) == []


def attempts(port: int, result: str) -> float | None:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        scrape = Scrape(page.read().decode())
    return scrape.value("sleb_sink_attempts_total", sink="store", result=result)


def _models(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/models").json()["data"]]


# ---- the thread that sends, by its steps


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(redis_client: redis.Redis, clock: Clock) -> SinkOutbox:
    return SinkOutbox(redis_client, clock=clock)


@pytest.fixture
def remote(tmp_path: Path) -> ObjectStore:
    return folder_store(tmp_path / "store")


def succeeded(store: JobStore, root: Path) -> Job:
    """A job whose checkpoint is below ``root``, and due for the store."""
    job = store.create(SPEC)
    attempt = store.start(job.id, "w").attempt
    published(root, job)
    store.succeed(job.id, job.checkpoint_name, attempt, [Sink.STORE])
    return store.get(job.id)


def sender(outbox: SinkOutbox, store: ObjectStore, root: Path) -> SinkThread:
    return SinkThread(Sink.STORE, outbox, CheckpointUpload(store, CheckpointStore(root)))


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreDenied("no rights")])
def test_a_store_that_fails_costs_no_job_and_gets_the_checkpoint_later(
    job_store: JobStore,
    outbox: SinkOutbox,
    clock: Clock,
    remote: ObjectStore,
    tmp_path: Path,
    error: Exception,
) -> None:
    job = succeeded(job_store, tmp_path)
    is_away = True

    def fail(_method: str) -> None:
        if is_away:
            raise error

    thread = sender(outbox, ObservedStore(remote, fail), tmp_path)
    for number in (1, 2):
        assert thread.send_next()
        assert not thread.send_next()  # it has to wait
        state = job_store.get(job.id).sinks[Sink.STORE]
        assert (state.is_sent, state.num_attempts, state.error) == (False, number, str(error))
        clock.now += 60
    assert job_store.get(job.id).status is JobStatus.SUCCEEDED
    told = [message for message in messages(job_store, job.id) if "not sent" in message]
    assert told == [f"not sent to store yet: {error}"]  # once, not at each attempt
    is_away = False
    assert thread.send_next()
    state = job_store.get(job.id).sinks[Sink.STORE]
    assert (state.is_sent, state.num_attempts, state.error) == (True, 2, None)
    assert remote.versions().keys() == {job.checkpoint_name}
    clock.now += 1e6
    assert not thread.send_next()


def test_a_job_of_another_disk_is_left_to_others(
    job_store: JobStore, outbox: SinkOutbox, clock: Clock, remote: ObjectStore, tmp_path: Path
) -> None:
    job = succeeded(job_store, tmp_path / "one")
    assert sender(outbox, remote, tmp_path / "other").send_next()
    assert job_store.get(job.id).sinks[Sink.STORE].num_attempts == 0
    clock.now += 61
    assert sender(outbox, remote, tmp_path / "one").send_next()
    assert job_store.get(job.id).sinks[Sink.STORE].is_sent


def test_a_claim_that_expires_goes_to_another_sender(
    job_store: JobStore, outbox: SinkOutbox, clock: Clock, remote: ObjectStore, tmp_path: Path
) -> None:
    job = succeeded(job_store, tmp_path)
    assert outbox.claim(Sink.STORE) is not None  # by one that dies
    assert not sender(outbox, remote, tmp_path).send_next()
    clock.now += 61
    assert sender(outbox, remote, tmp_path).send_next()
    assert job_store.get(job.id).sinks[Sink.STORE].is_sent


@pytest.mark.parametrize("call", ["sizes", "put", "put_manifest"])
def test_a_job_that_is_deleted_while_it_is_sent_leaves_nothing_in_the_store(
    job_store: JobStore,
    redis_client: redis.Redis,
    outbox: SinkOutbox,
    remote: ObjectStore,
    tmp_path: Path,
    call: str,
) -> None:
    job = succeeded(job_store, tmp_path)
    deletion = JobDeletion(redis_client, job_store, CheckpointStore(tmp_path / "none"))
    store = ObservedStore(remote, once(call, lambda: deletion.delete(job.id)))
    assert sender(outbox, store, tmp_path).send_next()
    assert (remote.versions(), remote.sizes(job.checkpoint_name)) == ({}, {})
    assert redis_client.zcard(SINK.format(sink=Sink.STORE)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("call", "num_objects"), [("put", 1), ("put_manifest", 2)])
def test_a_sender_that_is_killed_while_its_job_is_deleted_leaves_nothing_after_a_sweep(
    job_store: JobStore,
    redis_client: redis.Redis,
    redis_url: str,
    tmp_path: Path,
    call: str,
    num_objects: int,
) -> None:
    """The job is deleted in front of a write, and the process is killed behind it."""
    job = succeeded(job_store, tmp_path)
    remote = folder_store(tmp_path / "store")

    def send() -> None:
        with redis.Redis.from_url(redis_url) as client:
            deletion = JobDeletion(client, JobStore(client), CheckpointStore(tmp_path / "none"))
            store = ObservedStore(remote, once(call, lambda: deletion.delete(job.id)))
            sender(SinkOutbox(client), store, tmp_path).send_next()

    num_writes = num_objects + (call == "put_manifest")
    assert is_killed_behind(send, num_writes)
    assert len(remote.versions()) == (call == "put_manifest")
    assert len(remote.sizes(job.checkpoint_name)) == num_objects
    cache = CheckpointCache(tmp_path / "cache", 10**9)
    elsewhere = StoredCheckpoints(tmp_path / "elsewhere", remote, cache)
    deletion = JobDeletion(redis_client, job_store, elsewhere)
    Retention(RetentionPeriods(), elsewhere, job_store, deletion).sweep()
    assert (remote.versions(), remote.sizes(job.checkpoint_name)) == ({}, {})


def is_killed_behind(act: Callable[[], object], num_writes: int) -> bool:
    """Whether ``act``, in a process of its own, was killed behind so many writes to a store."""
    child = os.fork()
    if child == 0:
        write = "pruning.storage.files:FileSystemStore._write_in_folder"
        kill_at(Death(write, num_writes, When.AFTER))
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_is_deleted_is_kept_out_of_the_store_for_an_hour(
    job_store: JobStore, redis_client: redis.Redis, outbox: SinkOutbox, clock: Clock, tmp_path: Path
) -> None:
    sent, waiting = (succeeded(job_store, tmp_path) for _ in range(2))
    remote = folder_store(tmp_path / "store")
    assert sender(outbox, remote, tmp_path).send_next()
    for job in (sent, waiting):
        outbox.withdraw(Sink.STORE, job)
    assert outbox.withdrawn(Sink.STORE) == (waiting.checkpoint_name,)  # no sender has the other
    clock.now += 3599
    assert outbox.withdrawn(Sink.STORE) == (waiting.checkpoint_name,)
    clock.now += 2
    assert outbox.withdrawn(Sink.STORE) == ()
    assert not redis_client.exists(WITHDRAWN.format(sink=Sink.STORE))


@pytest.mark.parametrize("call", ["sizes", "put", "put_manifest"])
def test_a_sender_whose_claim_has_expired_takes_nothing_back_that_another_has_sent(
    job_store: JobStore,
    outbox: SinkOutbox,
    clock: Clock,
    remote: ObjectStore,
    tmp_path: Path,
    call: str,
) -> None:
    job = succeeded(job_store, tmp_path)

    def overtake() -> None:
        clock.now += 61
        assert sender(outbox, remote, tmp_path).send_next()

    assert sender(outbox, ObservedStore(remote, once(call, overtake)), tmp_path).send_next()
    assert job_store.get(job.id).sinks[Sink.STORE].is_sent
    assert remote.versions().keys() == {job.checkpoint_name}
    assert len(remote.sizes(job.checkpoint_name)) == len(FILES)


def once(method: str, act: Callable[[], object]) -> Callable[[str], None]:
    """Act before the first call of this method."""
    left = [act]

    def call(called: str) -> None:
        if called == method and left:
            left.pop()()

    return call


def test_an_older_attempt_does_not_overwrite_a_newer_one(
    job_store: JobStore, outbox: SinkOutbox, clock: Clock, tmp_path: Path
) -> None:
    job = succeeded(job_store, tmp_path)
    old = outbox.claim(Sink.STORE)
    clock.now += 61
    new = outbox.claim(Sink.STORE)
    assert old is not None
    assert new is not None
    assert outbox.failed(Sink.STORE, new, "new", outbox.now() + 5)
    assert outbox.failed(Sink.STORE, old, "old", outbox.now() + 5)
    assert job_store.get(job.id).sinks[Sink.STORE].error == "new"
