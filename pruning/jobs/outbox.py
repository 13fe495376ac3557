"""The outbox of webhook messages: claims, retries and the log of delivery attempts.

The script that changes a job adds its message in the same step (``script.py``). The message stays
until it is delivered, given up, or its job is deleted. Delivery is at least once: a claim that its
holder does not settle expires.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import redis

from pruning.jobs.job import Job, WebhookEvent
from pruning.jobs.keys import ATTEMPTS, MESSAGES, OUTBOX
from pruning.jobs.record import stored_job
from pruning.jobs.redis import each_of, redis_errors_translated
from pruning.records import InvalidRecord, check_time, parse_record, read_record, reason_of

logger = logging.getLogger(__name__)

LEASE_S = 60.0  # of a claim; much longer than the timeout of an attempt
MAX_ATTEMPTS_KEPT = 100

# KEYS the outbox. ARGV the time, the end of the claims, and the largest number of claims.
CLAIM = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], id) end
return due
"""

# KEYS the job's messages, the outbox, the job's attempts. ARGV the message's id, the number of the
# attempt, the attempt as JSON, how many are kept, and the time of the next one, or nothing.
# A failure with another number comes from an expired claim, and a newer claim has settled since.
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


class WebhookOutbox:
    """Undelivered webhook messages in Redis. Every method may raise ``JobStoreUnavailable``."""

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
        self._claim = client.register_script(CLAIM)
        self._settle = client.register_script(_SETTLE)

    def claim(self, limit: int) -> tuple[Message, ...]:
        """Claim up to ``limit`` due messages for ``lease_s`` seconds."""
        now = self.now()
        with redis_errors_translated():
            ids: list[bytes] = self._claim([OUTBOX], [now, now + self._lease_s, limit])
            with self._redis.pipeline(transaction=False) as pipeline:
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
        self._redis.zrem(OUTBOX, message_id)
        return None

    def settle(self, message: Message, attempt: DeliveryAttempt) -> None:
        """Record the result of an attempt, and keep the message if there is a next attempt.

        Does nothing if the attempt is settled already or the job was deleted.
        """
        keys = (MESSAGES.format(id=message.job_id), OUTBOX, ATTEMPTS.format(id=message.job_id))
        due = "" if attempt.next_attempt_at is None else attempt.next_attempt_at
        entry = json.dumps(asdict(attempt))
        with redis_errors_translated():
            self._settle(keys, [message.id, attempt.number, entry, MAX_ATTEMPTS_KEPT, due])

    def attempts(self, job_id: str) -> tuple[DeliveryAttempt, ...]:
        """The last ``MAX_ATTEMPTS_KEPT`` attempts for messages of this job, oldest first."""
        with redis_errors_translated():
            entries: Any = self._redis.lrange(ATTEMPTS.format(id=job_id), 0, -1)
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
