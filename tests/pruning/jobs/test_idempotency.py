"""Idempotency keys on a real server: claimed, bound to one job, given up, run out."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import redis

from pruning.jobs.conditions import Conditions
from pruning.jobs.idempotency import (
    CLAIM_S,
    KEY_KEPT_S,
    Claim,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    IdempotencyKeys,
)
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.waiting import wait_until

SPEC = PruneSpec(model="tiny", num_remove=2)
FINGERPRINT, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def keys(redis_client: redis.Redis) -> IdempotencyKeys:
    return IdempotencyKeys(redis_client)


def claimed(keys: IdempotencyKeys, key: str) -> Claim:
    claim = keys.claim(key, FINGERPRINT)
    assert isinstance(claim, Claim)
    return claim


def test_a_key_leads_to_the_job_it_has_made(keys: IdempotencyKeys, job_store: JobStore) -> None:
    job = job_store.create(SPEC, conditions=Conditions(claim=claimed(keys, "k")))
    assert keys.claim("k", FINGERPRINT) == job.id
    with pytest.raises(IdempotencyKeyReused, match="a different body"):
        keys.claim("k", OTHER)
    assert isinstance(keys.claim("another key", FINGERPRINT), Claim)


def test_a_claimed_key_is_in_flight(keys: IdempotencyKeys) -> None:
    claimed(keys, "k")
    with pytest.raises(IdempotencyInFlight):
        keys.claim("k", FINGERPRINT)
    with pytest.raises(IdempotencyKeyReused):
        keys.claim("k", OTHER)


def test_a_claim_lasts_seconds_and_a_binding_a_day(
    keys: IdempotencyKeys, job_store: JobStore, redis_client: redis.Redis
) -> None:
    claim = claimed(keys, "k")
    assert 0 < redis_client.ttl(claim.key) <= CLAIM_S
    job_store.create(SPEC, conditions=Conditions(claim=claim))
    assert CLAIM_S < redis_client.ttl(claim.key) <= KEY_KEPT_S


def test_a_claim_that_was_given_up_is_free_for_any_request(keys: IdempotencyKeys) -> None:
    keys.release(claimed(keys, "k"))
    assert isinstance(keys.claim("k", OTHER), Claim)


def test_only_its_holder_releases_a_claim_and_a_job_is_kept(
    keys: IdempotencyKeys, job_store: JobStore
) -> None:
    claim = claimed(keys, "k")
    keys.release(Claim(claim.key, FINGERPRINT, "of somebody else"))
    job = job_store.create(SPEC, conditions=Conditions(claim=claim))
    keys.release(claim)
    assert keys.claim("k", FINGERPRINT) == job.id


def test_a_claim_that_ran_out_creates_nothing(
    keys: IdempotencyKeys, job_store: JobStore, redis_client: redis.Redis
) -> None:
    late = claimed(keys, "k")
    redis_client.pexpire(late.key, 1)
    wait_until(lambda: not redis_client.exists(late.key), "the claim has run out")
    for is_claimed_anew in (False, True):
        if is_claimed_anew:
            claimed(keys, "k")
        with pytest.raises(IdempotencyInFlight):
            job_store.create(SPEC, conditions=Conditions(claim=late))
    assert job_store.list().jobs == ()


@pytest.mark.parametrize("key", ["k" * 255, " ", "é\0\n", "prn-" + "0" * 21, "*"])
def test_a_key_may_be_any_text(keys: IdempotencyKeys, job_store: JobStore, key: str) -> None:
    job = job_store.create(SPEC, conditions=Conditions(claim=claimed(keys, key)))
    assert keys.claim(key, FINGERPRINT) == job.id


def test_many_at_once_make_one_job_per_key(keys: IdempotencyKeys, job_store: JobStore) -> None:
    names = [f"key-{number}" for number in range(10)]

    def submit(key: str) -> str:
        """As a client does, who asks again until it has an answer."""
        while True:
            try:
                claim = keys.claim(key, FINGERPRINT)
                if isinstance(claim, str):
                    return claim
                return job_store.create(SPEC, conditions=Conditions(claim=claim)).id
            except IdempotencyInFlight:
                continue

    requests = [key for _, key in product(range(20), names)]
    with ThreadPoolExecutor(max_workers=20) as clients:
        made = list(clients.map(submit, requests))
    assert len({job.id for job in job_store.list(100).jobs}) == len(set(made)) == len(names)
    assert len(set(zip(requests, made, strict=True))) == len(names)
