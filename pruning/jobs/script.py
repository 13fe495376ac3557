"""The atomic scripts that create a job and change its record.

What is checked, the new fields, the indexes, the event and the webhook message are written together
or not at all.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.commands.core import Script

from pruning.jobs.conditions import UNMET, Conditions, limits_of, raise_unmet
from pruning.jobs.idempotency import KEY_KEPT_S, IdempotencyInFlight
from pruning.jobs.job import (
    TRANSITIONS,
    IllegalTransition,
    JobEvent,
    JobNotFound,
    JobStatus,
    StopRequest,
    stop_request,
)
from pruning.jobs.keys import EVENTS, INDEX, MESSAGES, OUTBOX, RECORD, SEARCH, STATUS_INDEX
from pruning.records import BROKEN_BY, check_time, parse_record, read_record, reason_of, sendable

logger = logging.getLogger(__name__)

MAX_EVENTS = 1000
STATUS_INDEXES = {status: STATUS_INDEX.format(status=status) for status in JobStatus}

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

# KEYS record, events, search state, webhook messages, outbox. ARGV the changes as JSON.
# All values are strings, so that floats keep every digit. The JSON names the indexes and outboxes,
# which Redis Cluster would not allow, but RQ does not support it either. A new status ends a pause
# request. Limits are checked where a change brings the job to the queue as a new one.
SCRIPT = (
    UNMET
    + """
local given = cjson.decode(ARGV[1])
local record = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'pause_requested_at')
local before, attempt = record[1], record[2] or '0'
if not before then return {'missing', '', '0', 0} end
if given.attempt and attempt ~= given.attempt then return {'stale', before, attempt, 0} end
local is_pausing = (record[3] or '') ~= ''
local change
for _, candidate in ipairs(given.changes) do
  local fits_pause = candidate.if_pausing == nil or candidate.if_pausing == is_pausing
  if candidate.moves[before] and fits_pause then change = candidate break end
end
if not change then return {'refused', before, attempt, 0} end
local after = change.moves[before]
if given.limits then
  local code, bytes = unmet(given.limits)
  if code then return {code, before, attempt, bytes} end
end
if after ~= before then
  redis.call('HSET', KEYS[1], 'status', after, 'status_since', given.now)
  redis.call('HDEL', KEYS[1], 'pause_requested_at')
  redis.call('ZREM', given.indexes[before], given.id)
  redis.call('ZADD', given.indexes[after], 0, given.id)
end
for name, from in pairs(change.copied) do
  redis.call('HSET', KEYS[1], name, redis.call('HGET', KEYS[1], from) or '')
end
for name, value in pairs(change.fields) do redis.call('HSET', KEYS[1], name, value) end
if given.finals[after] then redis.call('HSET', KEYS[1], 'finished_at', given.now) end
for _, name in ipairs(change.incremented) do redis.call('HINCRBY', KEYS[1], name, 1) end
if change.clears_search then redis.call('DEL', KEYS[3]) end
for name, value in pairs(change.search) do redis.call('HSET', KEYS[3], name, value) end
for _, name in ipairs(change.search_removed) do redis.call('HDEL', KEYS[3], name) end
for _, key in ipairs(change.due) do redis.call('ZADD', key, 0, given.id) end
if change.event then
  local event = {'status', after}
  for name, value in pairs(change.event) do
    event[#event + 1] = name
    event[#event + 1] = value
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', given.max_events, '*', unpack(event))
end
local webhook = after ~= before and redis.call('HGET', KEYS[1], 'webhook') or ''
for _, type in ipairs(webhook ~= '' and cjson.decode(webhook).events or {}) do
  if type == 'prune_job.' .. after then
    local number = redis.call('HINCRBY', KEYS[1], 'num_messages', 1)
    local message = {type = type, created_at = given.now, num_attempts = 0, record = {}}
    local fields = redis.call('HGETALL', KEYS[1])
    for at = 1, #fields, 2 do message.record[fields[at]] = fields[at + 1] end
    local id = 'msg_' .. given.id .. '_' .. number
    redis.call('HSET', KEYS[4], id, cjson.encode(message))
    redis.call('ZADD', KEYS[5], 0, id)
  end
end
record = redis.call('HMGET', KEYS[1], 'attempt', 'pause_requested_at')
return {'done', after, record[1] or '0', (record[2] or '') ~= '' and 1 or 0}
"""
)


class StaleAttempt(RuntimeError):
    """The writing worker has lost the job to another worker."""


@dataclass(frozen=True)
class Event:
    """An entry of a job's event stream."""

    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_fields(self, now: float) -> dict[str, str]:
        # a message may quote a file name that is not valid UTF-8
        fields = {"created_at": str(now), "level": self.level, "message": sendable(self.message)}
        return {**fields, "type": self.type, "data": json.dumps(dict(self.data))}


@dataclass(frozen=True)
class Change:
    """A change of a job's record. ``moves`` maps each allowed status to the status that follows."""

    name: str  # a verb, for the message of a refused change
    moves: Mapping[JobStatus, JobStatus]
    fields: Mapping[str, str] = field(default_factory=dict)  # to set in the record
    event: Event | None = None
    incremented: tuple[str, ...] = ()  # fields of the record
    copied: Mapping[str, str] = field(default_factory=dict)  # likewise, each from the one named
    search: Mapping[str, str] = field(default_factory=dict)  # fields of the search state to set
    search_removed: tuple[str, ...] = ()  # fields of the search state to remove
    clears_search: bool = False  # before its fields are set
    due: tuple[str, ...] = ()  # keys of the outboxes that get the job
    if_pausing: bool | None = None  # whether a pause must have been requested; None: either

    def __post_init__(self) -> None:
        for before, after in self.moves.items():
            if before is not after and after not in TRANSITIONS[before]:
                raise ValueError(f"{self.name}: {before} to {after} is not in TRANSITIONS")


@dataclass(frozen=True)
class Outcome:
    """The record after a change."""

    status: JobStatus
    attempt: int
    stop_request: StopRequest | None


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
    keys = [*own, INDEX, STATUS_INDEXES[JobStatus.QUEUED]]
    keys += [claim.key] if claim else []
    outcome, pending_bytes = script(keys=keys, args=[json.dumps(argument)])
    if outcome == b"lost":
        raise IdempotencyInFlight
    raise_unmet(outcome, pending_bytes, conditions)


def apply(
    script: Script,
    job_id: str,
    changes: Sequence[Change],
    attempt: int | None,
    conditions: Conditions | None = None,
) -> Outcome:
    """Apply the first of ``changes`` that the job allows. ``script`` is ``SCRIPT``, registered.

    ``attempt`` is that of the writing worker, None for other writers. Raises ``JobNotFound``,
    ``StaleAttempt``, ``IllegalTransition`` if the job allows none, or as ``raise_unmet`` if the
    limits of the ``conditions`` do not hold; then nothing is written.
    """
    now = time.time()
    argument: dict[str, Any] = {
        "id": job_id,
        "indexes": STATUS_INDEXES,
        "finals": {status: True for status in JobStatus if status.is_final},
        "now": str(now),
        "max_events": str(MAX_EVENTS),
        "changes": [_argument(change, now) for change in changes],
    }
    # left out if None: JSON's null is true in Lua
    if attempt is not None:
        argument["attempt"] = str(attempt)
    if conditions is not None:
        argument["limits"] = limits_of(conditions)
    own = (key.format(id=job_id) for key in (RECORD, EVENTS, SEARCH, MESSAGES))
    code, status, current, number = script([*own, OUTBOX], [json.dumps(argument, default=dict)])
    if code == b"missing":
        raise JobNotFound(job_id)
    if code == b"stale":
        raise StaleAttempt(f"job {job_id} was taken over by a newer worker after attempt {attempt}")
    before = status_of(status)
    if code == b"refused":
        raise IllegalTransition(job_id, before, changes[0].name)
    if conditions is not None:
        raise_unmet(code, number, conditions)
    return Outcome(before, int(current), stop_request(before, is_pausing=bool(number)))


def status_of(stored: bytes | str) -> JobStatus:
    """A stored status. A record with any other text is broken, and so a failed job."""
    try:
        return JobStatus(stored.decode(errors="replace") if isinstance(stored, bytes) else stored)
    except ValueError:
        return JobStatus.FAILED


def _argument(change: Change, now: float) -> dict[str, Any]:
    """The fields that have a value: JSON's null is true in Lua."""
    fields = {name: value for name, value in vars(change).items() if value is not None}
    return fields if change.event is None else {**fields, "event": change.event.to_fields(now)}


def read_event(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    """Read an event of the stream. ``data`` includes the status after the change.

    A broken one is an event that says why.
    """
    try:
        return _event(event_id, fields)
    except BROKEN_BY as error:
        reason = reason_of(error)
    logger.warning("event %s is damaged: %s", event_id, reason)
    return JobEvent(event_id, 0.0, "warn", f"this event is damaged: {reason}", "message", {})


def _event(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    stored = {name: fields[name] for name in ("level", "message", "type")}
    own = {"id": event_id, "created_at": float(fields["created_at"])}
    data = {**parse_record(fields["data"]), "status": fields["status"]}
    event = read_record(JobEvent, {**stored, **own, "data": data})
    check_time("created_at", event.created_at)
    return event
