"""The atomic script that creates a job, with the conditions of the request."""

import json
from collections.abc import Mapping
from typing import Any

from redis.commands.core import Script

from pruning.jobs.conditions import UNMET, Conditions, limits_of, raise_unmet
from pruning.jobs.idempotency import KEY_KEPT_S, IdempotencyInFlight
from pruning.jobs.job import JobStatus
from pruning.jobs.keys import EVENTS, INDEX, RECORD, SEARCH, STATUS_INDEX
from pruning.jobs.script import Event

# KEYS record, events, search state, index of all, index of the queued, and the idempotency key if
# there is one. A retry after a lost response finds the record and changes nothing.
# With ``search_of`` the job begins with what the search of that one has found, if that is there.
# Returns the outcome, and the bytes of pending jobs.
CREATE = (
    UNMET
    + """
local new = cjson.decode(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'done', 0} end
if new.claim and redis.call('GET', KEYS[6]) ~= new.claim then return {'lost', 0} end
local code, bytes = unmet(new.limits)
if code then return {code, bytes} end
for name, value in pairs(new.fields) do redis.call('HSET', KEYS[1], name, value) end
if new.search_of and redis.call('COPY', new.search_of.state, KEYS[3]) == 1 then
  for _, name in ipairs(new.search_of.fields) do
    local value = redis.call('HGET', new.search_of.record, name)
    if value then redis.call('HSET', KEYS[1], name, value) end
  end
  redis.call('HSET', KEYS[1], 'search_of', new.search_of.id)
end
redis.call('ZADD', KEYS[4], 0, new.fields.id)
redis.call('ZADD', KEYS[5], 0, new.fields.id)
local event = {}
for name, value in pairs(new.event) do
  event[#event + 1] = name
  event[#event + 1] = value
end
redis.call('XADD', KEYS[2], '*', unpack(event))
if new.claim then redis.call('SET', KEYS[6], new.binding, 'EX', new.key_kept_s) end
return {'done', 0}
"""
)
# what the record says of a search; a worker that finds another text or model clears it
SEARCH_FIELDS = ("removed_blocks", "losses", "dense_loss", "evaluations_done", "evaluations_total")


def create_job(
    script: Script,
    fields: Mapping[str, str],
    conditions: Conditions,
    search_of: str | None = None,
) -> None:
    """Record a job with these ``fields`` atomically. ``script`` is ``CREATE``, registered.

    ``search_of`` is a job whose search this one goes on with. Raises as ``raise_unmet``, or
    ``IdempotencyInFlight`` if the claim has expired.
    """
    event = Event("job created").to_fields(float(fields["created_at"]))
    argument: dict[str, Any] = {
        "fields": {**fields, "checkpoint_bytes": str(conditions.checkpoint_bytes)},
        "event": {"status": JobStatus.QUEUED.value, **event},
        "limits": limits_of(conditions),
    }
    # left out if None: JSON's null is true in Lua
    if search_of is not None:
        argument["search_of"] = {
            "id": search_of,
            "state": SEARCH.format(id=search_of),
            "record": RECORD.format(id=search_of),
            "fields": SEARCH_FIELDS,
        }
    if (claim := conditions.claim) is not None:
        argument["claim"] = claim.reservation
        argument["binding"] = claim.binding(fields["id"])
        argument["key_kept_s"] = str(KEY_KEPT_S)
    own = [key.format(id=fields["id"]) for key in (RECORD, EVENTS, SEARCH)]
    keys = [*own, INDEX, STATUS_INDEX.format(status=JobStatus.QUEUED)]
    keys += [claim.key] if claim else []
    outcome, pending_bytes = script(keys=keys, args=[json.dumps(argument)])
    if outcome == b"lost":
        raise IdempotencyInFlight
    raise_unmet(outcome, pending_bytes, conditions)
