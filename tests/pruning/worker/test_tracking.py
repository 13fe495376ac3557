"""Each job is recorded in MLflow once: in a folder of its own format, and by its REST calls."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from mlflow import MlflowClient
from mlflow.entities import Run

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.evaluation.quality import DomainQuality, Interval, Measured, Quality
from pruning.jobs.job import Job, JobStatus, Sink
from pruning.jobs.keys import SINK
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.store import JobStore
from pruning.models.block_times import BlockTimes
from pruning.worker.sinks import SinkThread
from pruning.worker.tracking import MlflowRuns, curves
from tests.support.checkpoints import manifest_of, write
from tests.support.clock import Clock
from tests.support.job_lives import SPEC
from tests.support.mlflow_server import Tracking, tracking_server

DOMAIN = DomainQuality(
    domain="prose",
    source="a text",
    num_windows=5,
    seqlen=8,
    digest="d",
    dense=Measured(1.0, 0.1),
    raw=(Measured(1.2, 0.1), Measured(1.5, 0.1)),
)


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracking]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking_server() as found:
        yield found


@pytest.fixture(params=["folder", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return f"file://{tmp_path}/mlruns"
    return str(request.getfixturevalue("tracking").url)


def measured_manifest(name: str) -> Manifest:
    quality = Quality((1.0, 1.1, 1.3), (2.0, 2.5, 3.0), "some text", domains=(DOMAIN,))
    times = BlockTimes(embedding_s=0.0, block_s=1.0, head_s=0.0)
    return replace(manifest_of(name), quality=quality, block_times=times)


def succeeded(store: JobStore, root: Path) -> Job:
    job = store.create(SPEC)
    attempt = store.start(job.id, "w").attempt

    def files(directory: Path) -> None:
        write(directory)
        (directory / PLOT_FILE).write_bytes(b"png")

    name = job.checkpoint_name
    publish(root / name, measured_manifest(name), files)
    store.succeed(job.id, name, attempt, [Sink.MLFLOW])
    return store.get(job.id)


def runs_of(uri: str, root: Path) -> MlflowRuns:
    return MlflowRuns(
        uri,
        "pruning",
        CheckpointStore(root),
        lambda name: f"s3://bucket/{name}",
        lambda _manifest: Interval(1.25, 1.2, 1.3),
    )


def recorded(uri: str, job: Job) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("pruning")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`sleb.job` = '{job.id}'"))


def test_a_job_is_recorded_once_with_all_that_is_known_of_it(
    job_store: JobStore, redis_client: redis.Redis, uri: str, tmp_path: Path
) -> None:
    job = succeeded(job_store, tmp_path)
    clock = Clock()
    outbox = SinkOutbox(redis_client, clock=clock)
    thread = SinkThread(Sink.MLFLOW, outbox, runs_of(uri, tmp_path))
    assert thread.send_next()
    assert not thread.send_next()
    (run,) = recorded(uri, job)
    assert run.info.status == "FINISHED"
    assert run.data.tags["sleb.checkpoint"] == f"s3://bucket/{job.checkpoint_name}"
    assert run.data.params["model"] == "tiny"
    assert run.data.params["num_remove"] == "2"
    state = job_store.get(job.id).sinks[Sink.MLFLOW]
    assert state.is_sent
    assert run.info.run_id in str(state.url)
    assert runs_of(uri, tmp_path).send(job, lambda: None).url == state.url  # by a second worker
    assert len(recorded(uri, job)) == 1


def test_the_curves_have_a_step_for_each_removed_block() -> None:
    found: dict[str, dict[int, float]] = {}
    manifest = measured_manifest("tiny@prn-1")
    for step, key, value in curves(manifest, Interval(1.25, 1.2, 1.3)):
        found.setdefault(key, {})[step] = value
    assert found["calibration_loss"] == {0: 1.0, 1: 1.1, 2: 1.3}
    assert found["calibration_perplexity"] == {0: 2.0, 1: 2.5, 2: 3.0}
    assert found["perplexity/prose"].keys() == {0, 1, 2}
    assert found["ratio/prose"][1] == pytest.approx(2.718281828**0.2)
    assert found["ratio_low/prose"][2] < found["ratio/prose"][2] < found["ratio_high/prose"][2]
    assert found["speedup/predicted"] == {1: 6 / 5, 2: 6 / 4}
    ends = [found[f"speedup{end}/measured"] for end in ("_low", "", "_high")]
    assert ends == [{2: 1.2}, {2: 1.25}, {2: 1.3}]


def test_a_server_that_fails_at_any_request_gets_one_whole_run_in_the_end(
    job_store: JobStore, redis_client: redis.Redis, tracking: Tracking, tmp_path: Path
) -> None:
    clock = Clock()
    outbox = SinkOutbox(redis_client, clock=clock)
    num_failed = 0
    while True:
        job = succeeded(job_store, tmp_path)
        thread = SinkThread(Sink.MLFLOW, outbox, runs_of(tracking.url, tmp_path))
        tracking.fails_at = len(tracking.requests) + num_failed + 1
        assert thread.send_next()
        if job_store.get(job.id).sinks[Sink.MLFLOW].is_sent:
            break
        num_failed += 1
        assert job_store.get(job.id).status is JobStatus.SUCCEEDED
        clock.now += 60
        assert thread.send_next()
        assert job_store.get(job.id).sinks[Sink.MLFLOW].is_sent
        (run,) = recorded(tracking.url, job)
        assert run.info.status == "FINISHED"
        metrics = tracking.runs[run.info.run_id]["data"]["metrics"]
        assert len(metrics) == len(list(curves(measured_manifest("x"), Interval(1, 1, 1))))
        assert f"1/{run.info.run_id}/artifacts/{PLOT_FILE}" in tracking.artifacts
    assert num_failed >= 6


def test_a_server_that_is_away_costs_no_job(
    job_store: JobStore,
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job = succeeded(job_store, tmp_path)
    outbox = SinkOutbox(redis_client, clock=Clock())
    away = runs_of("http://127.0.0.1:9", tmp_path)
    assert SinkThread(Sink.MLFLOW, outbox, away).send_next()
    state = job_store.get(job.id).sinks[Sink.MLFLOW]
    assert (state.is_sent, state.num_attempts) == (False, 1)
    assert job_store.get(job.id).status is JobStatus.SUCCEEDED
    assert redis_client.zcard(SINK.format(sink=Sink.MLFLOW)) == 1
