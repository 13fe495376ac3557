"""What workers write about jobs, without any work."""

from pruning.jobs.job import Phase
from pruning.jobs.store import JobStore
from pruning.removal import Removal

REMOVAL = Removal(1, 3, 2.5, 2.25, 4, 0.5, None, {3: 2.5, 4: 3.0}, {3: 1, 4: 1})


def succeed(store: JobStore, job_id: str) -> None:
    """Everything from the start to the end, a removal of two evaluations in between."""
    attempt = store.start(job_id, "worker-1").attempt
    store.set_phase(job_id, Phase.SEARCH, attempt)
    for done in (1, 2):
        store.evaluated(job_id, done, 2, attempt)
    store.removed(job_id, [REMOVAL], attempt)
    store.succeed(job_id, "tiny@x", attempt)
