"""Statistics of jobs and workers, for graphs and alerts.

Reads only, and with a short timeout: a scrape must not wait for an unavailable Redis.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from rq.utils import now, utcparse
from rq.worker_registration import get_keys

from pruning.jobs.job import Job, JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.queue import LEASE_S
from pruning.jobs.record import numbers
from pruning.jobs.redis import connect, each_of, redis_errors_translated
from pruning.jobs.store import JobStore

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
            num_workers=self._num_workers(),
        )

    def _queue_age_s(self) -> float:
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in self._jobs.ids(JobStatus.QUEUED):
                pipeline.hget(RECORD.format(id=job_id), "status_since")
            queued_at = numbers(each_of(pipeline))
        return max(0.0, time.time() - min(queued_at)) if queued_at else 0.0

    def _num_workers(self) -> int:
        """RQ keeps a dead worker for a minute, which is long for an alert."""
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for key in get_keys(connection=self._redis):
                pipeline.hget(key, "last_heartbeat")
            seen = each_of(pipeline)
        return sum(_is_recent(at) for at in seen)


def _is_recent(heartbeat: object) -> bool:
    """Whether this is a time within the last lease, as RQ writes it."""
    try:
        at = utcparse(heartbeat.decode()) if isinstance(heartbeat, bytes) else None
        return at is not None and now() - at < timedelta(seconds=LEASE_S)
    except (ValueError, TypeError, OverflowError):
        return False
