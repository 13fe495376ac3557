"""A new job, recorded in one atomic step: with its place in the queue and its idempotency key, or
not at all. Knows the script, and no key names: those are given to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.commands.core import Script

from pruning.jobs.job import JobStatus
from pruning.jobs.script import Event

CLAIM_S = 30  # for checking a request; if the process dies meanwhile, so long is its key taken
KEY_KEPT_S = 24 * 3600

# KEYS record, events, index of all, index of the queued, and the idempotency key if there is one.
# Sent again because the answer was lost, it finds the record and changes nothing.
SCRIPT = """
local new = cjson.decode(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return 'done' end
if new.claim and redis.call('GET', KEYS[5]) ~= new.claim then return 'lost' end
if new.max_queued and redis.call('ZCARD', KEYS[4]) >= new.max_queued then return 'full' end
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
return 'done'
"""


class QueueFull(RuntimeError):
    """As many jobs wait as may wait; ``retry_after_s`` is when a place may be free."""

    def __init__(self, max_queued: int) -> None:
        super().__init__(
            f"{max_queued} jobs are waiting, and no more may: try again later, or start more "
            "workers"
        )
        self.retry_after_s = 60.0


class IdempotencyInFlight(RuntimeError):
    """Another request with this key is being answered at this moment."""

    retry_after_s = 1.0
    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__("a request with this Idempotency-Key is in flight: repeat it in a moment")


@dataclass(frozen=True)
class Claim:
    """The right to create the one job of an idempotency key, for ``CLAIM_S`` seconds."""

    key: str  # of Redis
    fingerprint: str  # of the request
    token: str  # of who holds the claim

    @property
    def reservation(self) -> str:
        return f"{self.fingerprint} {self.token}"

    def binding(self, job_id: str) -> str:
        return f"{self.fingerprint} {job_id}"


@dataclass(frozen=True)
class Terms:
    """On which a job is created: how many may wait, and whose claim it answers."""

    max_queued: int | None = None
    claim: Claim | None = None


UNCONDITIONAL = Terms()


def create(
    script: Script, keys: tuple[str, str, str, str], fields: Mapping[str, str], terms: Terms
) -> None:
    """Record the job with these ``fields``, through ``SCRIPT`` as it is registered with a client.

    ``keys`` are those of the record, the events, the index of all jobs and that of the queued.
    Raises ``QueueFull``, or ``IdempotencyInFlight`` if the claim has run out.
    """
    event = Event("job created").to_fields(float(fields["created_at"]))
    argument: dict[str, Any] = {
        "fields": fields,
        "event": {"status": JobStatus.QUEUED.value, **event},
    }
    # absent rather than null, which is true in Lua
    if terms.max_queued is not None:
        argument["max_queued"] = terms.max_queued
    if (claim := terms.claim) is not None:
        argument["claim"] = claim.reservation
        argument["binding"] = claim.binding(fields["id"])
        argument["key_kept_s"] = str(KEY_KEPT_S)
    claimed = [claim.key] if claim else []
    outcome = script(keys=[*keys, *claimed], args=[json.dumps(argument)])
    if outcome == b"full":
        raise QueueFull(terms.max_queued or 0)
    if outcome == b"lost":
        raise IdempotencyInFlight
