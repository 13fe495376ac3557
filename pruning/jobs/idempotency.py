"""Idempotency keys: a request that is sent twice under one key creates one job.

A key is claimed while its request is checked, and bound to the job by the same atomic step that
creates the job. A refused request leaves no key behind.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import redis

from pruning.jobs.keys import IDEMPOTENCY
from pruning.jobs.redis import redis_errors_translated

CLAIM_S = 30  # lifetime of a claim whose process has died
KEY_KEPT_S = 24 * 3600

# KEYS the idempotency key. ARGV the reservation: the key may belong to a newer claim by now.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class IdempotencyInFlight(RuntimeError):
    """Another request with this key is being processed."""

    retry_after_s = 1.0
    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__(
            "a request with this Idempotency-Key is in progress: repeat the request in a moment"
        )


class IdempotencyKeyReused(ValueError):
    """The key belongs to another request."""

    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was used with a different body: use a new key for a new job"
        )


@dataclass(frozen=True)
class Claim:
    """The right to create the one job of an idempotency key, for ``CLAIM_S`` seconds."""

    key: str  # in Redis
    fingerprint: str  # of the request
    token: str  # of the holder

    @property
    def reservation(self) -> str:
        """The value of the key until the job is created."""
        return f"{self.fingerprint} {self.token}"

    def binding(self, job_id: str) -> str:
        """The value of the key once the job is created."""
        return f"{self.fingerprint} {job_id}"


class IdempotencyKeys:
    """Claims of idempotency keys in Redis. Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._release = client.register_script(_RELEASE)

    def claim(self, key: str, fingerprint: str) -> Claim | str:
        """Return a claim to create the job of this key, or the id of the job if it exists.

        ``fingerprint`` is hexadecimal. Raises ``IdempotencyKeyReused`` if the key was used with
        another fingerprint, and ``IdempotencyInFlight`` while another claim holds.
        """
        name = IDEMPOTENCY.format(key=hashlib.sha256(key.encode()).hexdigest())
        claim = Claim(name, fingerprint, secrets.token_hex(8))
        with redis_errors_translated():
            held_before: Any = self._redis.set(
                name, claim.reservation, nx=True, get=True, ex=CLAIM_S
            )
        held: str = claim.reservation if held_before is None else held_before.decode()
        if held == claim.reservation:
            return claim
        first_fingerprint, owner = held.split()
        if first_fingerprint != fingerprint:
            raise IdempotencyKeyReused
        if owner.startswith("prn-"):  # a token is hexadecimal
            return owner
        raise IdempotencyInFlight

    def release(self, claim: Claim) -> None:
        """Give the key up, if this claim still holds it."""
        with redis_errors_translated():
            self._release(keys=[claim.key], args=[claim.reservation])
