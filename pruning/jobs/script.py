"""One change of a job's record, made in one atomic step.

The check of the state, the new fields, the indexes, the event and the message to the job's webhook
happen together or not at all. Knows the script and the form of an event, and no key names: those
are given to it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.commands.core import Script

from pruning.jobs.job import (
    TRANSITIONS,
    IllegalTransition,
    JobEvent,
    JobNotFound,
    JobStatus,
    StopRequest,
    stop_request,
)

# KEYS record, events, search state, webhook messages, outbox.
# ARGV the changes as JSON, of text: no float loses a digit.
# The indexes are named in the JSON, which only a cluster would mind, and RQ rules that out.
# A request to pause belongs to the state it was made in.
SCRIPT = """
local given = cjson.decode(ARGV[1])
local record = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'pause_requested_at')
local before, attempt = record[1], record[2] or '0'
if not before then return {'missing', '', '0', 0} end
if given.attempt and attempt ~= given.attempt then return {'stale', before, attempt, 0} end
local is_pausing = (record[3] or '') ~= ''
local change
for _, one in ipairs(given.changes) do
  local fits = one.moves[before] and (one.if_pausing == nil or one.if_pausing == is_pausing)
  if fits then change = one break end
end
if not change then return {'refused', before, attempt, 0} end
local after = change.moves[before]
if after ~= before then
  redis.call('HSET', KEYS[1], 'status', after, 'status_since', given.now)
  redis.call('HDEL', KEYS[1], 'pause_requested_at')
  redis.call('ZREM', given.indexes[before], given.id)
  redis.call('ZADD', given.indexes[after], 0, given.id)
end
for name, value in pairs(change.fields) do redis.call('HSET', KEYS[1], name, value) end
if given.finals[after] then redis.call('HSET', KEYS[1], 'finished_at', given.now) end
for _, name in ipairs(change.counted) do redis.call('HINCRBY', KEYS[1], name, 1) end
if change.search_anew or given.finals[after] then redis.call('DEL', KEYS[3]) end
for name, value in pairs(change.search) do redis.call('HSET', KEYS[3], name, value) end
for _, name in ipairs(change.search_over) do redis.call('HDEL', KEYS[3], name) end
if change.event then
  local event = {'status', after}
  for name, value in pairs(change.event) do
    event[#event + 1] = name
    event[#event + 1] = value
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', given.events_kept, '*', unpack(event))
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


class StaleAttempt(RuntimeError):
    """A worker that had lost the job to another one tried to write to it."""


@dataclass(frozen=True)
class Event:
    """Something to tell whoever watches a job."""

    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_fields(self, now: float) -> dict[str, str]:
        # a message may quote a file name that is no text, which Redis would refuse
        message = self.message.encode("utf-8", "backslashreplace").decode()
        fields = {"created_at": str(now), "level": self.level, "message": message}
        return {**fields, "type": self.type, "data": json.dumps(dict(self.data))}


@dataclass(frozen=True)
class Change:
    """``moves`` maps the states it may begin in to the state it ends in; no others are allowed.

    ``fields`` are set, ``counted`` go up by one. Of the search state, which an ended job has no
    longer, ``search`` fields are set and ``search_over`` ones removed, if ``is_anew`` behind all.
    With ``if_pausing`` it is for jobs alone that are asked to pause, or alone for those that are
    not.
    """

    name: str  # of what is asked, for the message when it is refused
    moves: Mapping[JobStatus, JobStatus]
    fields: Mapping[str, str] = field(default_factory=dict)
    event: Event | None = None
    counted: tuple[str, ...] = ()
    search: Mapping[str, str] = field(default_factory=dict)
    search_over: tuple[str, ...] = ()
    is_anew: bool = False
    if_pausing: bool | None = None

    def __post_init__(self) -> None:
        for before, after in self.moves.items():
            if before is not after and after not in TRANSITIONS[before]:
                raise ValueError(f"{self.name}: {before} to {after} is not in TRANSITIONS")


@dataclass(frozen=True)
class Outcome:
    """What the record has after a change."""

    status: JobStatus
    attempt: int
    stop_request: StopRequest | None


@dataclass(frozen=True)
class Place:
    """Where a job is kept: ``keys`` as the script wants them, and the index of every status."""

    job_id: str
    keys: tuple[str, ...]
    indexes: Mapping[JobStatus, str]
    events_kept: int


def apply(script: Script, place: Place, changes: Sequence[Change], attempt: int | None) -> Outcome:
    """Make the first of the ``changes`` that the job allows, through ``SCRIPT`` as registered.

    ``attempt`` is that of the worker that writes, None for everybody else. Raises ``JobNotFound``,
    ``StaleAttempt``, or ``IllegalTransition`` if there is no such change; then nothing has changed.
    """
    now = time.time()
    argument: dict[str, Any] = {
        "id": place.job_id,
        "indexes": place.indexes,
        "finals": {status: True for status in JobStatus if status.is_final},
        "now": str(now),
        "events_kept": str(place.events_kept),
        "changes": [_argument(change, now) for change in changes],
    }
    # absent rather than null, which is true in Lua
    if attempt is not None:
        argument["attempt"] = str(attempt)
    code, status, current, is_pausing = script(keys=place.keys, args=[json.dumps(argument)])
    if code == b"missing":
        raise JobNotFound(place.job_id)
    if code == b"stale":
        raise StaleAttempt(f"job {place.job_id} has a newer worker than attempt {attempt}")
    found = JobStatus(status.decode())
    if code == b"refused":
        raise IllegalTransition(place.job_id, found, changes[0].name)
    return Outcome(found, int(current), stop_request(found, is_pausing=bool(is_pausing)))


def _argument(change: Change, now: float) -> dict[str, Any]:
    argument: dict[str, Any] = {
        "moves": change.moves,
        "fields": change.fields,
        "counted": change.counted,
        "search": change.search,
        "search_over": change.search_over,
        "search_anew": change.is_anew,
    }
    if change.event is not None:
        argument["event"] = change.event.to_fields(now)
    if change.if_pausing is not None:
        argument["if_pausing"] = change.if_pausing
    return argument


def read_event(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    """What a change has written; ``data`` has the status that it led to as well."""
    return JobEvent(
        id=event_id,
        created_at=float(fields["created_at"]),
        level=fields["level"],
        message=fields["message"],
        type=fields["type"],
        data={**json.loads(fields["data"]), "status": fields["status"]},
    )
