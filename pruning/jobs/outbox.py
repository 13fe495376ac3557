"""The outboxes: webhook messages, and jobs whose result is still to be sent to a store or tracker.

The script that changes a job adds to them in the same step (``script.py``). What is in one stays
until it is delivered or its job is deleted; only messages are given up. A claim that its holder
does not settle or renew expires, so all is delivered at least once, and a sink has to know what it
has already.

A job that is deleted before it is sent may be on its way, in a process that dies before it could
take back what it has sent. So the script that drops the job notes its checkpoint as withdrawn, and
sweeps delete that until no sender can be left.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis

from pruning.jobs.job import Job, Sink, SinkState, WebhookEvent
from pruning.jobs.keys import ATTEMPTS, EVENTS, MESSAGES, OUTBOX, RECORD, SINK, WITHDRAWN
from pruning.jobs.record import stored_job
from pruning.jobs.redis import each_of, redis_errors_translated
from pruning.jobs.script import Event
from pruning.records import InvalidRecord, check_time, parse_record, read_record, reason_of

logger = logging.getLogger(__name__)

LEASE_S = 60.0  # of a claim; much longer than the timeout of an attempt
MAX_ATTEMPTS_KEPT = 100
WITHDRAWN_S = 3600.0  # a sender may be suspended between a look at its claim and a write

# KEYS the outbox. ARGV the time, the end of the claims, and the largest number of claims.
_CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""

# KEYS the job's messages, the outbox, the job's attempts. ARGV the message's id, the number of the
# attempt, the attempt as JSON, how many are kept, and the time of the next one, or nothing.
# A failure with another number comes from an expired claim, and a newer claim has settled since.
_SETTLE_MESSAGE = """
local text = redis.call('HGET', KEYS[1], ARGV[1])
if not text then return end
local message = cjson.decode(text)
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
elseif message.num_attempts + 1 == tonumber(ARGV[2]) then
  message.num_attempts = message.num_attempts + 1
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(message))
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
else
  return
end
redis.call('RPUSH', KEYS[3], ARGV[3])
redis.call('LTRIM', KEYS[3], -ARGV[4], -1)
"""

# KEYS the outbox, the record, the events. ARGV the id, the field of the record, the number of
# failed attempts before, the new state, when it is due again (or empty), and the event (or empty).
# A state with another number is from an expired claim, and a newer one has settled since.
_SETTLE_JOB = """
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


@dataclass(frozen=True)
class Message:
    """A webhook message. ``record`` is the job's when it reached the status that ``type`` names."""

    id: str
    job_id: str
    type: WebhookEvent
    created_at: float
    num_attempts: int  # failed ones
    record: Mapping[str, str]

    @property
    def job(self) -> Job:
        return stored_job(self.job_id, self.record)


@dataclass(frozen=True)
class DeliveryAttempt:
    """An attempt to deliver a message, successful if ``error`` is None.

    With an ``error`` and no ``next_attempt_at``, the message was given up.
    """

    message_id: str
    type: WebhookEvent
    number: int  # 1 for the first
    at: float
    duration_s: float
    response_status: int | None
    error: str | None
    next_attempt_at: float | None


@dataclass(frozen=True)
class _Outbox:
    """Claims for ``lease_s`` seconds of what is due."""

    client: redis.Redis
    clock: Callable[[], float] = time.time
    lease_s: float = LEASE_S

    def now(self) -> float:
        return self.clock()

    def _run(self, script: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:  # noqa: ANN401 - of Redis
        return self.client.register_script(script)(keys, args)


class WebhookOutbox(_Outbox):
    """Undelivered webhook messages in Redis. Every method may raise ``JobStoreUnavailable``."""

    def claim(self, limit: int) -> tuple[Message, ...]:
        """Claim up to ``limit`` due messages for ``lease_s`` seconds."""
        now = self.now()
        with redis_errors_translated():
            ids: list[bytes] = self._run(_CLAIM, [OUTBOX], [now, now + self.lease_s, limit])
            with self.client.pipeline(transaction=False) as pipeline:
                for message_id in ids:
                    pipeline.hget(MESSAGES.format(id=_job_id(message_id)), message_id)
                texts = each_of(pipeline)
            claimed = [self._readable(*each) for each in zip(ids, texts, strict=True)]
        return tuple(message for message in claimed if message is not None)

    def _readable(self, message_id: bytes, text: object) -> Message | None:
        """The message; None if it is broken or of a deleted job, and then it is dropped."""
        try:
            if text is not None:
                return _message(message_id, text)
        except (ValueError, TypeError, LookupError) as error:
            logger.warning("message %.100r is broken: %s", message_id, reason_of(error))
        self.client.zrem(OUTBOX, message_id)
        return None

    def settle(self, message: Message, attempt: DeliveryAttempt) -> None:
        """Record the result of an attempt, and keep the message if there is a next attempt.

        Does nothing if the attempt is settled already or the job was deleted.
        """
        keys = (MESSAGES.format(id=message.job_id), OUTBOX, ATTEMPTS.format(id=message.job_id))
        due = "" if attempt.next_attempt_at is None else attempt.next_attempt_at
        entry = json.dumps(asdict(attempt))
        with redis_errors_translated():
            self._run(
                _SETTLE_MESSAGE, keys, [message.id, attempt.number, entry, MAX_ATTEMPTS_KEPT, due]
            )

    def attempts(self, job_id: str) -> tuple[DeliveryAttempt, ...]:
        """The last ``MAX_ATTEMPTS_KEPT`` attempts for messages of this job, oldest first."""
        with redis_errors_translated():
            entries: Any = self.client.lrange(ATTEMPTS.format(id=job_id), 0, -1)
        return tuple(
            attempt for entry in entries if (attempt := _attempt(job_id, entry)) is not None
        )


def _job_id(message_id: bytes) -> str:
    """Message ids are ``msg_``, the job's id, ``_`` and a number, see ``script.py``."""
    parts = message_id.decode(errors="replace").split("_")
    return parts[1] if len(parts) == 3 else ""


def _message(message_id: bytes, text: object) -> Message:
    if not isinstance(text, bytes):
        raise InvalidRecord(str(text))  # an error of Redis
    fields = parse_record(text)
    own = {"id": message_id.decode(), "job_id": _job_id(message_id)}
    message = read_record(Message, {**fields, **own, "created_at": float(fields["created_at"])})
    check_time("created_at", message.created_at)
    return message


def _attempt(job_id: str, entry: bytes) -> DeliveryAttempt | None:
    """The attempt of an entry; None if it is broken."""
    try:
        return read_record(DeliveryAttempt, parse_record(entry))
    except ValueError as error:
        logger.warning("an attempt for a message of job %s is broken: %s", job_id, reason_of(error))
        return None


class SinkOutbox(_Outbox):
    """Jobs that are due to be sent. Every method may raise ``JobStoreUnavailable``."""

    def claim(self, sink: Sink) -> Job | None:
        """Claim a job that is due for ``lease_s`` seconds, if there is one."""
        now, key = self.now(), SINK.format(sink=sink)
        with redis_errors_translated():
            due: Any = self._run(_CLAIM, [key], [now, now + self.lease_s, 1])
            if not due:
                return None
            job_id = due[0].decode()
            record: Any = self.client.hgetall(RECORD.format(id=job_id))
            job = stored_job(job_id, record)
            if sink not in job.sinks:
                self.client.zrem(key, job_id)  # deleted in between, or broken
                return None
        return job

    def renew(self, sink: Sink, job_id: str) -> bool:
        """Extend a claim; False if the job is not to be sent any more."""
        return self.postpone(sink, job_id, self.now() + self.lease_s)

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

    def postpone(self, sink: Sink, job_id: str, due_at: float) -> bool:
        """Leave the job to another process until then. This is no attempt. Returns as ``renew``."""
        key = SINK.format(sink=sink)
        with redis_errors_translated(), self.client.pipeline(transaction=True) as pipeline:
            pipeline.zadd(key, {job_id: due_at}, xx=True)
            pipeline.zscore(key, job_id)
            _, due = pipeline.execute()
        return due is not None

    def withdraw(self, sink: Sink, job: Job) -> None:
        """Do not send the job any more. If it is not sent yet, its checkpoint is withdrawn."""
        keys = [SINK.format(sink=sink), WITHDRAWN.format(sink=sink)]
        with redis_errors_translated():
            self._run(_WITHDRAW, keys, [job.id, job.checkpoint_name, self.now() + WITHDRAWN_S])

    def withdrawn(self, sink: Sink) -> tuple[str, ...]:
        """The checkpoints that a sender may still write, and that must not be there."""
        key = WITHDRAWN.format(sink=sink)
        with redis_errors_translated():
            self.client.zremrangebyscore(key, "-inf", self.now())
            names: Any = self.client.zrange(key, 0, -1)
        return tuple(name.decode() for name in names)

    def _settled(
        self,
        sink: Sink,
        job: Job,
        state: SinkState,
        due_at: float | None,
        event: Event | None,
    ) -> bool:
        keys = (SINK.format(sink=sink), RECORD.format(id=job.id), EVENTS.format(id=job.id))
        settled, due = json.dumps(asdict(state)), "" if due_at is None else due_at
        entry = json.dumps(event.to_fields(state.at)) if event else ""
        known = (job.id, sink.field, job.sinks[sink].num_attempts)
        with redis_errors_translated():
            return bool(self._run(_SETTLE_JOB, keys, (*known, settled, due, entry)))
