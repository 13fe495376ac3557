"""Jobs whose windows do not fit into memory at once: stopped within a round, they go on there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize

from pruning.config import WorkerSettings
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.store import JobStore
from pruning.search import observed
from pruning.search.prefixes import Prefixes
from pruning.search.state import ScoredCandidate
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Search
from pruning.worker.run import prune_job
from pruning.worker.task import JobObserver, execute
from tests.support.quick import slow_but

NUM_WINDOWS, SEQLEN = 24, 8
ROOM_FOR_4 = ByteSize(4 * SEQLEN * 32 * 4 * 7)  # windows of a model that is 32 wide, in float32
STOPS: dict[str, Callable[[JobStore, str], object]] = {
    "pause": lambda store, job_id: store.pause(job_id),
    "cancel": lambda store, job_id: store.cancel(job_id),
}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "SECONDS_PER_REPORT", 0.0)


@pytest.fixture
def settings(tmp_path: Path, tiny_models_dir: Path) -> WorkerSettings:
    assert tiny_models_dir == tmp_path / "models"
    return WorkerSettings(data_dir=tmp_path, threads=1, state_budget=ROOM_FOR_4)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The candidates that are computed, once for each batch."""
    branch, found = Prefixes.branch, list[int]()

    def noted(prefixes: Prefixes, block: int) -> Any:
        found.append(block)
        return branch(prefixes, block)

    monkeypatch.setattr(Prefixes, "branch", noted)
    return found


def spec_of(search: Search) -> PruneSpec:
    text = CalibrationSpec(Dataset.PROSE, num_samples=NUM_WINDOWS, seqlen=SEQLEN)
    return PruneSpec("tiny", 2, calibration=text, evaluate=False, repair=Repair.NONE, search=search)


def run_of(
    settings: WorkerSettings, after: Callable[[int], object] = lambda _reports: None
) -> Callable[[Job, JobObserver], str]:
    """The real run, with a call before each report of candidates."""

    def run(job: Job, observer: JobObserver) -> str:
        record, num_reports = observer.evaluated, 0

        def evaluated(done: int, total: int, scored: Sequence[ScoredCandidate] = ()) -> None:
            nonlocal num_reports
            num_reports += 1
            after(num_reports)
            record(done, total, scored)

        observer.evaluated = evaluated  # type: ignore[method-assign]  # of this observer alone
        return prune_job(settings, job, observer, observer.earlier, observer.confirm)

    return run


@pytest.mark.parametrize("search", slow_but(Search, Search.STAGED))
@pytest.mark.parametrize("how", STOPS)
def test_a_job_that_is_stopped_in_its_first_round_goes_on_there(
    settings: WorkerSettings, job_store: JobStore, scored: list[int], how: str, search: Search
) -> None:
    whole = job_store.create(spec_of(search))
    execute(whole.id, job_store, "w", run_of(settings))
    expected, num_scored = job_store.get(whole.id), len(scored)
    assert expected.status is JobStatus.SUCCEEDED, expected.error
    scored.clear()

    def stop_at_9(number: int) -> None:
        if number == 9:
            STOPS[how](job_store, job.id)

    job = job_store.create(spec_of(search))
    execute(job.id, job_store, "w", run_of(settings, stop_at_9))
    stopped = job_store.get(job.id)
    assert stopped.status in (JobStatus.PAUSED, JobStatus.CANCELLED)
    assert stopped.removed_blocks == ()
    sizes = [len(found) for found in job_store.search_state(job.id).scored_in("1").values()]
    assert sizes
    assert max(sizes) < NUM_WINDOWS  # no candidate is scored as a whole
    again = job_store.resume if how == "pause" else lambda id_: job_store.retry(id_, job.spec)
    again(job.id)
    execute(job.id, job_store, "w", run_of(settings))
    ended = job_store.get(job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert (ended.removed_blocks, ended.losses) == (expected.removed_blocks, expected.losses)
    assert ended.progress == expected.progress
    assert len(scored) == num_scored  # nothing again, and nothing more
