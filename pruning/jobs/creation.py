"""The atomic script that creates a job: its conditions, and the errors if they do not hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.commands.core import Script

from pruning.jobs.idempotency import KEY_KEPT_S, Claim, IdempotencyInFlight
from pruning.jobs.job import JobStatus, Sink
from pruning.jobs.keys import RECORD, SINK, STATUS_INDEX
from pruning.jobs.quota import NO_QUOTA, CheckpointQuotaReached, JobQuota, QueueQuotaReached
from pruning.jobs.script import Event
from pruning.plural import counted

# KEYS record, events, index of all, index of the queued, and the idempotency key if there is one.
# A retry after a lost response finds the record and changes nothing. The JSON names the indexes of
# the jobs that count towards the quotas. One that has succeeded since its client has looked which
# are pending counts as well. Returns the outcome, and the bytes of pending jobs.
CREATE = """
local new = cjson.decode(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'done', 0} end
if new.claim and redis.call('GET', KEYS[5]) ~= new.claim then return {'lost', 0} end
if new.max_queued and redis.call('ZCARD', KEYS[4]) >= new.max_queued then return {'full', 0} end
local function of_tenant(indexes, succeeded)
  local count, bytes, seen = 0, 0, {}
  local function add(id, status)
    if seen[id] then return end
    seen[id] = true
    local found = redis.call('HMGET', new.records .. id, 'owner', 'checkpoint_bytes', 'status')
    if found[1] == new.fields.owner and (not status or found[3] == status) then
      count, bytes = count + 1, bytes + (tonumber(found[2] or 0) or 0)
    end
  end
  for _, index in ipairs(indexes) do
    for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do add(id) end
  end
  for _, id in ipairs(succeeded) do add(id, 'succeeded') end
  return count, bytes
end
if new.queued_quota > 0 and of_tenant(new.waiting, {}) >= new.queued_quota then
  return {'queued quota', 0}
end
if new.bytes_quota > 0 then
  local _, bytes = of_tenant(new.pending, new.pending_before)
  if new.published_bytes + bytes + tonumber(new.fields.checkpoint_bytes) > new.bytes_quota then
    return {'bytes quota', bytes}
  end
end
for name, value in pairs(new.fields) do redis.call('HSET', KEYS[1], name, value) end
redis.call('ZADD', KEYS[3], 0, new.fields.id)
redis.call('ZADD', KEYS[4], 0, new.fields.id)
local event = {}
for name, value in pairs(new.event) do
  event[#event + 1] = name
  event[#event + 1] = value
end
redis.call('XADD', KEYS[2], '*', unpack(event))
if new.claim then redis.call('SET', KEYS[5], new.binding, 'EX', new.key_kept_s) end
return {'done', 0}
"""

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
            f"no more than {counted(max_queued, 'job')} may wait: try again later, or start more "
            "workers"
        )
        self.retry_after_s = 60.0


@dataclass(frozen=True)
class Conditions:
    """Conditions of creating a job: limits, and the claim of the request."""

    max_queued: int | None = None
    claim: Claim | None = None
    owner: str | None = None  # the tenant that the job belongs to; None: all keys see it
    quota: JobQuota = NO_QUOTA  # of the owner
    checkpoint_bytes: int = 0  # that the job writes at most


UNCONDITIONAL = Conditions()


def create_job(
    script: Script,
    keys: tuple[str, str, str, str],
    fields: Mapping[str, str],
    conditions: Conditions,
) -> None:
    """Record a job with these ``fields`` atomically. ``script`` is ``CREATE``, registered.

    ``keys`` are those of the record, the events, the index of all jobs and the index of queued
    jobs. Raises ``QueueFull``, ``QueueQuotaReached``, ``CheckpointQuotaReached``, or
    ``IdempotencyInFlight`` if the claim has expired.
    """
    event = Event("job created").to_fields(float(fields["created_at"]))
    argument: dict[str, Any] = {
        "fields": {**fields, "checkpoint_bytes": str(conditions.checkpoint_bytes)},
        "event": {"status": JobStatus.QUEUED.value, **event},
        **_quota_argument(conditions),
    }
    # left out if None: JSON's null is true in Lua
    if conditions.max_queued is not None:
        argument["max_queued"] = conditions.max_queued
    if (claim := conditions.claim) is not None:
        argument["claim"] = claim.reservation
        argument["binding"] = claim.binding(fields["id"])
        argument["key_kept_s"] = str(KEY_KEPT_S)
    claimed = [claim.key] if claim else []
    outcome, pending_bytes = script(keys=[*keys, *claimed], args=[json.dumps(argument)])
    _raise_refusal(outcome, pending_bytes, conditions)


def _quota_argument(conditions: Conditions) -> dict[str, Any]:
    quota = NO_QUOTA if conditions.owner is None else conditions.quota
    return {
        "records": RECORD.format(id=""),
        "waiting": [STATUS_INDEX.format(status=status) for status in _WAITING],
        "pending": PENDING,
        "pending_before": sorted(quota.pending_jobs),
        "queued_quota": quota.queued_jobs,
        "bytes_quota": quota.checkpoint_bytes,
        "published_bytes": quota.published_bytes,
    }


def _raise_refusal(outcome: bytes, pending_bytes: int, conditions: Conditions) -> None:
    """Raises as ``create_job``."""
    tenant, quota = conditions.owner or "", conditions.quota
    if outcome == b"full":
        raise QueueFull(conditions.max_queued or 0)
    if outcome == b"lost":
        raise IdempotencyInFlight
    if outcome == b"queued quota":
        raise QueueQuotaReached(tenant, quota.queued_jobs)
    if outcome == b"bytes quota":
        raise CheckpointQuotaReached(tenant, quota, conditions.checkpoint_bytes, pending_bytes)
