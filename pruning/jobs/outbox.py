"""Webhook messages on their way: claimed, delivered or tried again, and the log of the attempts.

A message is put here by the very step that changes its job (``job_change.py``), and stays until it
is delivered or given up, or its job is deleted. Delivery is at least once: a claim that its holder
does not settle runs out.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import redis

from pruning.jobs.job import Job
from pruning.jobs.keys import MESSAGES, OUTBOX, TOLD
from pruning.jobs.redis import redis_errors_translated

LEASE_S = 60.0  # much longer than one attempt may take
MAX_ATTEMPTS_KEPT = 100

# KEYS the outbox. ARGV now, until when the claims hold, and how many at most.
_CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""

# KEYS the job's messages, the outbox, the job's log. ARGV the message's id, the attempt's number,
# the attempt as JSON, how many are kept, and when the next one is due, if there is to be one.
# A failure under another number comes from a claim that has run out, and that a newer one outdid.
_SETTLE = """
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


@dataclass(frozen=True)
class Message:
    """``record`` is the job's at the moment when it came to the status that the type names."""

    id: str
    job_id: str
    type: str
    created_at: float
    num_attempts: int  # that have failed so far
    record: Mapping[str, str]

    @property
    def job(self) -> Job:
        return Job.from_fields(self.record)


@dataclass(frozen=True)
class Attempt:
    """One try to deliver a message: a success if there is no ``error``.

    If there is one and no ``next_attempt_at``, the message was given up.
    """

    message_id: str
    type: str
    number: int  # 1 for the first
    at: float
    duration_s: float
    response_status: int | None
    error: str | None
    next_attempt_at: float | None


class WebhookOutbox:
    """Every method may raise ``JobStoreUnavailable``."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        clock: Callable[[], float] = time.time,
        lease_s: float = LEASE_S,
    ) -> None:
        self.now = clock
        self._lease_s = lease_s
        self._redis = client
        self._claim = client.register_script(_CLAIM)
        self._settle = client.register_script(_SETTLE)

    def claim(self, limit: int) -> tuple[Message, ...]:
        """Up to ``limit`` messages that are due; for ``lease_s`` nobody else gets them."""
        now = self.now()
        with redis_errors_translated():
            due = self._claim(keys=[OUTBOX], args=[now, now + self._lease_s, limit])
            ids: list[str] = [message_id.decode() for message_id in due]
            with self._redis.pipeline(transaction=False) as pipeline:
                for message_id in ids:
                    pipeline.hget(MESSAGES.format(id=_job_id(message_id)), message_id)
                texts = pipeline.execute()
        # none if the job was deleted a moment ago
        return tuple(_message(id_, text) for id_, text in zip(ids, texts, strict=True) if text)

    def settle(self, message: Message, attempt: Attempt) -> None:
        """Note how an attempt has ended, and keep the message if there is to be another.

        Once more, or for a job that was deleted, it does nothing.
        """
        keys = (MESSAGES.format(id=message.job_id), OUTBOX, TOLD.format(id=message.job_id))
        due = "" if attempt.next_attempt_at is None else attempt.next_attempt_at
        entry = json.dumps(asdict(attempt))
        with redis_errors_translated():
            self._settle(keys, [message.id, attempt.number, entry, MAX_ATTEMPTS_KEPT, due])

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """The last ``MAX_ATTEMPTS_KEPT`` for this job's messages, the oldest first."""
        with redis_errors_translated():
            entries: Any = self._redis.lrange(TOLD.format(id=job_id), 0, -1)
        return tuple(Attempt(**json.loads(entry)) for entry in entries)


def _job_id(message_id: str) -> str:
    """As ``job_change.py`` makes them: ``msg_``, the job, ``_`` and a number."""
    return message_id.split("_")[1]


def _message(message_id: str, text: bytes) -> Message:
    fields = json.loads(text)
    return Message(
        id=message_id,
        job_id=_job_id(message_id),
        type=fields["type"],
        created_at=float(fields["created_at"]),
        num_attempts=fields["num_attempts"],
        record=fields["record"],
    )
