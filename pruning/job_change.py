"""One change of a job's record, made in one atomic step.

The check of the state, the new fields, the indexes and the event happen together or not at all.
Knows the script and the form of an event, and no key names: those are given to it.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.commands.core import Script

from pruning.job import TRANSITIONS, JobEvent, JobStatus

# KEYS record, events, search state. ARGV the change as JSON, of text: no float loses a digit.
# The indexes are named in the JSON, which only a cluster would mind, and RQ rules that out.
SCRIPT = """
local change = cjson.decode(ARGV[1])
local before = redis.call('HGET', KEYS[1], 'status')
if not before then return {'missing', '', '0'} end
local attempt = redis.call('HGET', KEYS[1], 'attempt') or '0'
if change.attempt and attempt ~= change.attempt then return {'stale', before, attempt} end
local after = change.moves[before]
if not after then return {'refused', before, attempt} end
if after ~= before then
  redis.call('HSET', KEYS[1], 'status', after)
  redis.call('ZREM', change.indexes[before], change.id)
  redis.call('ZADD', change.indexes[after], 0, change.id)
end
for name, value in pairs(change.fields) do redis.call('HSET', KEYS[1], name, value) end
if change.finals[after] then redis.call('HSET', KEYS[1], 'finished_at', change.now) end
for _, name in ipairs(change.counted) do redis.call('HINCRBY', KEYS[1], name, 1) end
if change.search_anew or change.finals[after] then redis.call('DEL', KEYS[3]) end
for name, value in pairs(change.search) do redis.call('HSET', KEYS[3], name, value) end
for _, name in ipairs(change.search_over) do redis.call('HDEL', KEYS[3], name) end
if change.event then
  local event = {'status', after}
  for name, value in pairs(change.event) do
    event[#event + 1] = name
    event[#event + 1] = value
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', change.events_kept, '*', unpack(event))
end
return {'done', after, redis.call('HGET', KEYS[1], 'attempt') or '0'}
"""


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
    """

    name: str  # of what is asked, for the message when it is refused
    moves: Mapping[JobStatus, JobStatus]
    fields: Mapping[str, str] = field(default_factory=dict)
    event: Event | None = None
    counted: tuple[str, ...] = ()
    search: Mapping[str, str] = field(default_factory=dict)
    search_over: tuple[str, ...] = ()
    is_anew: bool = False

    def __post_init__(self) -> None:
        for before, after in self.moves.items():
            if before is not after and after not in TRANSITIONS[before]:
                raise ValueError(f"{self.name}: {before} to {after} is not in TRANSITIONS")


@dataclass(frozen=True)
class Outcome:
    """``code`` is "done", "missing", "refused" or "stale"; only "done" has changed anything."""

    code: str
    status: str
    attempt: int


@dataclass(frozen=True)
class Place:
    """Where a job is kept: the names of its keys and of the index of every status."""

    job_id: str
    record: str
    events: str
    search: str
    indexes: Mapping[JobStatus, str]
    events_kept: int


def apply(script: Script, place: Place, change: Change, attempt: int | None) -> Outcome:
    """Run ``change`` through ``SCRIPT`` as it is registered with a client.

    ``attempt`` is that of the worker that writes, None for everybody else.
    """
    now = time.time()
    argument: dict[str, Any] = {
        "id": place.job_id,
        "moves": change.moves,
        "indexes": place.indexes,
        "finals": {status: True for status in JobStatus if status.is_final},
        "fields": change.fields,
        "now": str(now),
        "events_kept": str(place.events_kept),
        "counted": change.counted,
        "search": change.search,
        "search_over": change.search_over,
        "search_anew": change.is_anew,
    }
    # absent rather than null, which is true in Lua
    if attempt is not None:
        argument["attempt"] = str(attempt)
    if change.event is not None:
        argument["event"] = change.event.to_fields(now)
    keys = [place.record, place.events, place.search]
    code, status, attempt = script(keys=keys, args=[json.dumps(argument)])
    return Outcome(code.decode(), status.decode(), int(attempt))


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
