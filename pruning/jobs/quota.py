"""Quotas of a tenant's jobs: how many may wait, how many may run, and what they may store.

The scripts that create and take jobs check them. A job without a tenant has no quota.
"""

from dataclasses import dataclass

from pruning.plural import counted

ANY_TENANT = "*"  # the name of no tenant: stands for those without a limit of their own


@dataclass(frozen=True)
class JobQuota:
    """Limits of one tenant when it creates a job; 0 is no limit.

    ``published_bytes`` are those of its checkpoints, without those of ``pending_jobs``: the bytes
    that those may write include them.
    The limit of running jobs is not here: workers read it when they take a job.
    """

    queued_jobs: int = 0  # those that wait, and those that are paused
    checkpoint_bytes: int = 0
    published_bytes: int = 0
    pending_jobs: frozenset[str] = frozenset()


NO_QUOTA = JobQuota()


class QueueQuotaReached(RuntimeError):
    """As many jobs of the tenant wait as its quota allows. See ``QueueFull`` for the time."""

    def __init__(self, tenant: str, limit: int) -> None:
        super().__init__(
            f"no more than {counted(limit, 'job')} of the tenant {tenant!r} may wait, paused ones "
            "included: try again later, or cancel one"
        )
        self.retry_after_s = 60.0


class CheckpointQuotaReached(RuntimeError):
    """The checkpoint of the job would take the tenant beyond its quota."""

    def __init__(self, tenant: str, quota: JobQuota, needed_bytes: int, pending_bytes: int) -> None:
        super().__init__(
            f"the job may write {needed_bytes} bytes of checkpoints. Those of the tenant "
            f"{tenant!r} take {quota.published_bytes}, and its jobs that are not finished or not "
            f"uploaded may write {pending_bytes}, where {quota.checkpoint_bytes} are allowed: "
            "delete a job with its checkpoint, or cancel one"
        )
