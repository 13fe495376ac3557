"""Statistics of jobs and workers, for graphs and alerts.

Reads only, and with a short timeout: a scrape must not wait for an unavailable Redis.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pruning.jobs.job import Job, JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.record import numbers
from pruning.jobs.redis import JobStoreUnavailable, connect, each_of, redis_errors_translated
from pruning.jobs.store import JobStore
from pruning.jobs.workers import Workers

TIMEOUT_S = 1.0
_MAX_ACTIVE_JOBS = 100  # each is a series of the scrape


@dataclass(frozen=True)
class JobStats:
    """Statistics at about one moment. ``active_jobs`` are the jobs that a worker has."""

    num_jobs: Mapping[JobStatus, int]
    queue_age_s: float  # of the job that was queued first and still waits; 0 if none waits
    active_jobs: tuple[Job, ...]
    num_workers: int  # with a heartbeat within the last lease


class JobStatsReader:
    """Reads statistics with its own client, which has a shorter timeout and no retries."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url, num_retries=0, timeout_s=TIMEOUT_S)
        self._jobs = JobStore(self._redis)
        self._workers = Workers(self._redis)
        self.last_num_workers: int | None = None  # None while the job store does not answer

    def close(self) -> None:
        self._redis.close()

    def read(self) -> JobStats:
        """Raises ``JobStoreUnavailable``."""
        pages = (
            self._jobs.list(_MAX_ACTIVE_JOBS, status=status)
            for status in (JobStatus.RUNNING, JobStatus.CANCELLING)
        )
        return JobStats(
            num_jobs=self._jobs.counts(),
            queue_age_s=self._queue_age_s(),
            active_jobs=tuple(job for page in pages for job in page.jobs)[:_MAX_ACTIVE_JOBS],
            num_workers=self._workers.num_alive(),
        )

    def count_workers(self) -> None:
        """Set ``last_num_workers``, for readers that must not wait."""
        try:
            self.last_num_workers = self._workers.num_alive()
        except JobStoreUnavailable:
            self.last_num_workers = None

    def _queue_age_s(self) -> float:
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in self._jobs.ids(JobStatus.QUEUED):
                pipeline.hget(RECORD.format(id=job_id), "status_since")
            queued_at = numbers(each_of(pipeline))
        return max(0.0, time.time() - min(queued_at)) if queued_at else 0.0
