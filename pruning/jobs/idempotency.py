"""Idempotency keys: a request that is sent twice under one key makes one job.

A key is first claimed, for as long as the request is checked, and bound to the job in the very
step that creates it. What is refused leaves nothing behind.
"""

import hashlib
import secrets

import redis

from pruning.jobs.keys import IDEMPOTENCY
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.store import CLAIM_S, Claim, IdempotencyInFlight

# KEYS the idempotency key, ARGV the reservation: one that has run out may be another's by now.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class IdempotencyKeyReused(ValueError):
    """The key belongs to another request."""

    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key came with another body before: use a new key for a new job"
        )


class IdempotencyKeys:
    """Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._release = client.register_script(_RELEASE)

    def claim(self, key: str, fingerprint: str) -> Claim | str:
        """The claim to create the job of this key, or the id of the job that it has made.

        ``fingerprint`` is hexadecimal. Raises ``IdempotencyKeyReused`` for another fingerprint than
        the first, ``IdempotencyInFlight`` while another claim holds.
        """
        name = IDEMPOTENCY.format(key=hashlib.sha256(key.encode()).hexdigest())
        claim = Claim(name, fingerprint, secrets.token_hex(8))
        with redis_errors_translated():
            found = self._redis.set(name, claim.reservation, nx=True, get=True, ex=CLAIM_S)
        if found is None or (held := _text(found)) == claim.reservation:
            return claim
        first, owner = held.split()
        if first != fingerprint:
            raise IdempotencyKeyReused
        if owner.startswith("prn-"):  # a token is hexadecimal
            return owner
        raise IdempotencyInFlight

    def release(self, claim: Claim) -> None:
        """Give the claim up; a key that is bound to a job stays so."""
        with redis_errors_translated():
            self._release(keys=[claim.key], args=[claim.reservation])


def _text(value: object) -> str:
    assert isinstance(value, bytes)  # as from a client that leaves bytes alone
    return value.decode()
