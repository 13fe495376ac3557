"""Jobs and their progress as clients and workers write them, without a worker."""

from collections.abc import Callable, Mapping, Sequence

from pruning.jobs import transitions
from pruning.jobs.job import Job, JobError, JobStatus, Phase, Sink
from pruning.jobs.store import JobStore
from pruning.removal import Removal
from pruning.spec.prune import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=2)
ERROR = JobError("not_enough_text", "too short", "calibration.num_samples")
FIRST = Removal(1, 3, 2.5, 2.0, 4, 0.25, None, {3: 2.5, 4: 2.75}, {3: 1, 4: 1})
SECOND = Removal(2, 4, 3.5, 2.0, None, None, None, {4: 3.5}, {4: 1})
REMOVAL = Removal(1, 3, 2.5, 2.25, 4, 0.5, None, {3: 2.5, 4: 3.0}, {3: 1, 4: 1})

CHANGES: Mapping[str, Callable[[JobStore, str], object]] = {
    "start": lambda store, job_id: store.start(job_id, "w"),
    "phase": lambda store, job_id: store.record(job_id, transitions.phase_begun(Phase.LOAD)),
    "evaluated": lambda store, job_id: store.record(job_id, transitions.evaluated(1, 2)),
    "removed": lambda store, job_id: store.record(job_id, transitions.removed(removals(1))),
    "cancel": lambda store, job_id: store.cancel(job_id),
    "pause": lambda store, job_id: store.pause(job_id),
    "resume": lambda store, job_id: store.resume(job_id),
    "retry": lambda store, job_id: store.retry(job_id, SPEC),
    "stopped": lambda store, job_id: store.stopped(job_id),
    "lost": lambda store, job_id: store.requeue(job_id, "lost", is_lost=True),
    "requeued": lambda store, job_id: store.requeue(job_id, "stops", is_lost=False),
    "short of memory": lambda store, job_id: store.short_of_memory(job_id, "2 GiB"),
    "succeed": lambda store, job_id: store.succeed(job_id, "tiny@x"),
    "fail": lambda store, job_id: store.fail(job_id, ERROR),
}


def removals(count: int) -> list[Removal]:
    scores, seen = {4: 1.0, 5: 2.0}, {4: 8, 5: 8}
    return [
        Removal(n, 10 + n, 0.1 + 0.2 * n, 3.7, 5, 0.01, 0.002, scores, seen) for n in range(count)
    ]


def messages(store: JobStore, job_id: str) -> list[str]:
    return [event.message for event in store.events(job_id)]


def succeed(store: JobStore, job_id: str, pruned_model: str = "tiny@x") -> None:
    """Everything from the start to the end, a removal of two evaluations in between."""
    attempt = store.start(job_id, "worker-1").attempt
    store.record(job_id, transitions.phase_begun(Phase.SEARCH), attempt)
    for done in (1, 2):
        store.record(job_id, transitions.evaluated(done, 2), attempt)
    store.record(job_id, transitions.removed([REMOVAL]), attempt)
    store.succeed(job_id, pruned_model, attempt)


def ended(store: JobStore, status: JobStatus, sinks: Sequence[Sink] = ()) -> Job:
    job_id = store.create(SPEC).id
    if status is JobStatus.CANCELLED:
        return store.cancel(job_id)
    store.start(job_id, "w")
    if status is JobStatus.FAILED:
        store.fail(job_id, JobError("x", "y"))
    else:
        store.succeed(job_id, f"tiny@{job_id}", sinks=sinks)
    return store.get(job_id)
