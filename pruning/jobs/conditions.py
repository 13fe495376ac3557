"""Conditions of a job that comes to the queue: its limits, checked by the script that adds it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruning.jobs.idempotency import Claim
from pruning.jobs.job import JobStatus, Sink
from pruning.jobs.keys import RECORD, SINK, STATUS_INDEX
from pruning.plural import counted

# A function of the table of ``limits_of``, which names the indexes of the jobs that count. One
# that has succeeded since its client has looked which are pending counts as well.
# Returns what does not hold, if anything, and the bytes of pending jobs. A record whose bytes are
# no such number adds none: inf would use up the quota, and nan would lift it.
UNMET = """
local function unmet(limits)
  if limits.max_queued and redis.call('ZCARD', limits.queued) >= limits.max_queued then
    return 'full', 0
  end
  local function amount(text)
    text = text or ''
    if #text > 15 or text:find('%D') then return 0 end
    return tonumber(text) or 0
  end
  local function of_tenant(indexes, succeeded)
    local count, bytes, seen = 0, 0, {}
    local function add(id, status)
      if seen[id] then return end
      seen[id] = true
      local record = limits.records .. id
      local found = redis.pcall('HMGET', record, 'owner', 'checkpoint_bytes', 'status')
      if found[1] == limits.owner and (not status or found[3] == status) then
        count, bytes = count + 1, bytes + amount(found[2])
      end
    end
    for _, index in ipairs(indexes) do
      for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do add(id) end
    end
    for _, id in ipairs(succeeded) do add(id, 'succeeded') end
    return count, bytes
  end
  if limits.queued_quota > 0 and of_tenant(limits.waiting, {}) >= limits.queued_quota then
    return 'queued quota', 0
  end
  if limits.bytes_quota > 0 then
    local _, bytes = of_tenant(limits.pending, limits.pending_before)
    if limits.published_bytes + bytes + limits.checkpoint_bytes > limits.bytes_quota then
      return 'bytes quota', bytes
    end
  end
  return nil, 0
end
"""

ANY_TENANT = "*"  # the name of no tenant: stands for those without a limit of their own
_WAITING = (JobStatus.QUEUED, JobStatus.PAUSED)  # else a pause would make room for another job
# of jobs whose checkpoint may be in no list yet: it is not published, or not in the object store
PENDING = (
    *(STATUS_INDEX.format(status=status) for status in JobStatus if not status.is_final),
    SINK.format(sink=Sink.STORE),
)


class QueueFull(RuntimeError):
    """The queue is full. It may have room again in ``retry_after_s`` seconds."""

    def __init__(self, max_queued: int) -> None:
        super().__init__(
            f"the job queue is full ({counted(max_queued, 'job')}): try again later, or "
            "start more workers"
        )
        self.retry_after_s = 60.0


@dataclass(frozen=True)
class JobQuota:
    """Limits of one tenant when it creates a job; 0 is no limit. A job without a tenant has none.

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
            f"the quota of tenant {tenant!r} is reached "
            f"({counted(limit, 'queued or paused job')}): try again later, or cancel a job"
        )
        self.retry_after_s = 60.0


class CheckpointQuotaReached(RuntimeError):
    """The checkpoint of the job would take the tenant beyond its quota."""

    def __init__(self, tenant: str, quota: JobQuota, needed_bytes: int, pending_bytes: int) -> None:
        super().__init__(
            f"the job may write {needed_bytes} bytes of checkpoints, but the quota of "
            f"tenant {tenant!r} is {quota.checkpoint_bytes} bytes, of which its checkpoints "
            f"use {quota.published_bytes} and its unfinished jobs and uploads may use "
            f"{pending_bytes}: delete a job with its checkpoint, or cancel a job"
        )


@dataclass(frozen=True)
class Conditions:
    """Conditions of creating a job: limits, and the claim of the request."""

    max_queued: int | None = None
    claim: Claim | None = None
    owner: str | None = None  # the tenant that the job belongs to; None: all keys see it
    quota: JobQuota = NO_QUOTA  # of the owner
    checkpoint_bytes: int = 0  # that the job writes at most


UNCONDITIONAL = Conditions()


def limits_of(conditions: Conditions) -> Mapping[str, Any]:
    """The table that ``UNMET`` reads."""
    quota = NO_QUOTA if conditions.owner is None else conditions.quota
    limits: dict[str, Any] = {
        "records": RECORD.format(id=""),
        "queued": STATUS_INDEX.format(status=JobStatus.QUEUED),
        "owner": conditions.owner or "",
        "waiting": [STATUS_INDEX.format(status=status) for status in _WAITING],
        "pending": PENDING,
        "pending_before": sorted(quota.pending_jobs),
        "queued_quota": quota.queued_jobs,
        "bytes_quota": quota.checkpoint_bytes,
        "published_bytes": quota.published_bytes,
        "checkpoint_bytes": conditions.checkpoint_bytes,
    }
    # left out if None: JSON's null is true in Lua
    if conditions.max_queued is not None:
        limits["max_queued"] = conditions.max_queued
    return limits


def raise_unmet(unmet: bytes, pending_bytes: int, conditions: Conditions) -> None:
    """Raises ``QueueFull``, ``QueueQuotaReached`` or ``CheckpointQuotaReached``, or nothing."""
    tenant, quota = conditions.owner or "", conditions.quota
    if unmet == b"full":
        raise QueueFull(conditions.max_queued or 0)
    if unmet == b"queued quota":
        raise QueueQuotaReached(tenant, quota.queued_jobs)
    if unmet == b"bytes quota":
        raise CheckpointQuotaReached(tenant, quota, conditions.checkpoint_bytes, pending_bytes)
