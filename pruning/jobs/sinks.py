"""The outboxes of sinks: which jobs have a result that is still to be sent to a store or tracker.

The script that records the success of a job adds it to them in the same step (``script.py``). A job
stays until it is sent or deleted, however often that fails. A claim that its holder does not renew
expires, so sending is at least once, and a sink has to know what it has already.

A job that is deleted before it is sent may be on its way, in a process that dies before it could
take back what it has sent. So the script that drops the job notes its checkpoint as withdrawn, and
sweeps delete that until no sender can be left.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import redis

from pruning.jobs.job import Job, Sink, SinkState
from pruning.jobs.keys import EVENTS, RECORD, SINK, WITHDRAWN
from pruning.jobs.outbox import CLAIM
from pruning.jobs.record import stored_job
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.script import Event

LEASE_S = 60.0  # of a claim, which its holder renews
WITHDRAWN_S = 3600.0  # a sender may be suspended between a look at its claim and a write

# KEYS the outbox, the record, the events. ARGV the id, the field of the record, the number of
# failed attempts before, the new state, when it is due again (or empty), and the event (or empty).
# A state with another number is from an expired claim, and a newer one has settled since.
_SETTLE = """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
local text = redis.call('HGET', KEYS[2], ARGV[2])
if not text then redis.call('ZREM', KEYS[1], ARGV[1]) return 0 end
if cjson.decode(text).num_attempts ~= tonumber(ARGV[3]) then return 1 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
if ARGV[5] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[5], ARGV[1])
end
if ARGV[6] ~= '' then
  local event = {'status', redis.call('HGET', KEYS[2], 'status')}
  for name, value in pairs(cjson.decode(ARGV[6])) do
    event[#event + 1] = name
    event[#event + 1] = value
  end
  redis.call('XADD', KEYS[3], '*', unpack(event))
end
return 1
"""

# KEYS the outbox, the withdrawn. ARGV the id, the checkpoint, and until when it is withdrawn.
_WITHDRAW = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
end
"""

# KEYS the outbox. ARGV the id, and the end of the claim.
_RENEW = """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return 1
"""


class SinkOutbox:
    """Jobs that are due to be sent. Every method may raise ``JobStoreUnavailable``."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        clock: Callable[[], float] = time.time,
        lease_s: float = LEASE_S,
    ) -> None:
        self.now = clock
        self.lease_s = lease_s
        self._redis = client
        self._claim = client.register_script(CLAIM)
        self._renew = client.register_script(_RENEW)
        self._settle = client.register_script(_SETTLE)
        self._withdraw = client.register_script(_WITHDRAW)

    def claim(self, sink: Sink) -> Job | None:
        """Claim a job that is due for ``lease_s`` seconds, if there is one."""
        now, key = self.now(), SINK.format(sink=sink)
        with redis_errors_translated():
            due: Any = self._claim(keys=[key], args=[now, now + self.lease_s, 1])
            if not due:
                return None
            job_id = due[0].decode()
            record: Any = self._redis.hgetall(RECORD.format(id=job_id))
            job = stored_job(job_id, record)
            if sink not in job.sinks:
                self._redis.zrem(key, job_id)  # deleted in between, or broken
                return None
        return job

    def renew(self, sink: Sink, job_id: str) -> bool:
        """Extend a claim; False if the job is not to be sent any more."""
        until = self.now() + self.lease_s
        with redis_errors_translated():
            return bool(self._renew(keys=[SINK.format(sink=sink)], args=[job_id, until]))

    def sent(self, sink: Sink, job: Job, url: str, message: str) -> bool:
        """Record that the result is at ``url``; False if it was not to be sent any more."""
        state = SinkState(
            is_sent=True, num_attempts=job.sinks[sink].num_attempts, at=self.now(), url=url
        )
        data = {"sink": sink.value, "url": url}
        return self._settled(sink, job, state, None, Event(message, data=data))

    def failed(self, sink: Sink, job: Job, error: str, due_at: float) -> bool:
        """Record a failed attempt, with an event if the last one did not fail in the same way."""
        number = job.sinks[sink].num_attempts + 1
        state = SinkState(is_sent=False, num_attempts=number, at=self.now(), error=error)
        event = None
        if error != job.sinks[sink].error:
            event = Event(f"not sent to {sink} yet: {error}", "warn", data={"sink": sink.value})
        return self._settled(sink, job, state, due_at, event)

    def postpone(self, sink: Sink, job_id: str, due_at: float) -> None:
        """Leave the job to another process, until then. This is no attempt."""
        with redis_errors_translated():
            self._renew(keys=[SINK.format(sink=sink)], args=[job_id, due_at])

    def withdraw(self, sink: Sink, job: Job) -> None:
        """Do not send the job any more. If it is not sent yet, its checkpoint is withdrawn."""
        keys = [SINK.format(sink=sink), WITHDRAWN.format(sink=sink)]
        with redis_errors_translated():
            self._withdraw(keys, [job.id, job.checkpoint_name, self.now() + WITHDRAWN_S])

    def withdrawn(self, sink: Sink) -> tuple[str, ...]:
        """The checkpoints that a sender may still write, and that must not be there."""
        key = WITHDRAWN.format(sink=sink)
        with redis_errors_translated():
            self._redis.zremrangebyscore(key, "-inf", self.now())
            names: Any = self._redis.zrange(key, 0, -1)
        return tuple(name.decode() for name in names)

    def num_waiting(self, sink: Sink) -> int:
        """The number of jobs that are not sent yet."""
        with redis_errors_translated():
            number: Any = self._redis.zcard(SINK.format(sink=sink))
        return int(number)

    def _settled(
        self,
        sink: Sink,
        job: Job,
        state: SinkState,
        due_at: float | None,
        event: Event | None,
    ) -> bool:
        keys = (SINK.format(sink=sink), RECORD.format(id=job.id), EVENTS.format(id=job.id))
        fields: Mapping[str, str] = event.to_fields(state.at) if event else {}
        arguments: list[str | float] = [
            job.id,
            sink.field,
            job.sinks[sink].num_attempts,
            json.dumps(asdict(state)),
            "" if due_at is None else due_at,
            json.dumps(fields) if fields else "",
        ]
        with redis_errors_translated():
            return bool(self._settle(keys, arguments))
