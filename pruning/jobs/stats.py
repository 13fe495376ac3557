"""How the jobs and their workers are doing, all at once: what is worth a graph or an alert.

Reads only, and answers or gives up within a second: nobody's scrape waits for a Redis that is away.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rq.utils import now, utcparse
from rq.worker_registration import get_keys

from pruning.jobs.job import Job, JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.queue import LEASE_S
from pruning.jobs.redis import connect, redis_errors_translated
from pruning.jobs.store import JobStore

ANSWER_S = 1.0
_MOST_AT_WORK = 100  # as many series may a scrape have for them


@dataclass(frozen=True)
class JobStats:
    """Of one moment, more or less; ``at_work`` are those that a worker has now."""

    num_jobs: Mapping[JobStatus, int]
    queue_age_s: float  # since the first of those that wait was queued last; 0 if none waits
    at_work: tuple[Job, ...]
    num_workers: int  # that have shown a sign of life within a lease


class JobStatsReader:
    """A client of its own, less patient than that of the routes."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url, num_retries=0, timeout_s=ANSWER_S)
        self._jobs = JobStore(self._redis)

    def close(self) -> None:
        self._redis.close()

    def read(self) -> JobStats:
        """Raises ``JobStoreUnavailable``."""
        pages = (
            self._jobs.list(_MOST_AT_WORK, status=status)
            for status in (JobStatus.RUNNING, JobStatus.CANCELLING)
        )
        return JobStats(
            num_jobs=self._jobs.counts(),
            queue_age_s=self._queue_age_s(),
            at_work=tuple(job for page in pages for job in page.jobs)[:_MOST_AT_WORK],
            num_workers=self._num_workers(),
        )

    def _queue_age_s(self) -> float:
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in self._jobs.ids(JobStatus.QUEUED):
                pipeline.hget(RECORD.format(id=job_id), "status_since")
            queued_at = [float(found) for found in pipeline.execute() if found]
        return max(0.0, time.time() - min(queued_at)) if queued_at else 0.0

    def _num_workers(self) -> int:
        """RQ itself forgets a worker that died after a minute, which is long for an alert."""
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for key in get_keys(connection=self._redis):
                pipeline.hget(key, "last_heartbeat")
            seen: list[Any] = [found for found in pipeline.execute() if found]
        return sum(now() - utcparse(at.decode()) < timedelta(seconds=LEASE_S) for at in seen)
