"""Tokens per minute of a tenant in a real Redis: against a model, and who is charged for what."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.auth.keys import ApiKey, Quota, Scope, caller
from app.auth.limits import WINDOW_S, KeyLimits, TokenQuotaReached
from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels
from pruning.jobs.keys import TENANT_TOKENS
from tests.support.key_limits import limits_at, run
from tests.support.valkey_server import ValkeyServer

TENANT = "team"


def key_of(tokens: int | None, name: str = "a", rate: int = 0) -> ApiKey:
    quota = Quota(tokens_per_min=tokens)
    return ApiKey(name, frozenset(Scope), "0" * 64, 0.0, rate, 0, TENANT, quota=quota)


def end(
    limits: KeyLimits,
    key: ApiKey | None,
    num_tokens: int,
    num_prompt_tokens: int = 0,
    traffic: str = "live",
    scheduled_s: float | None = 1.0,
) -> None:
    """A generation that this key has asked for ends."""
    token = caller.set(key)
    labels = Labels("tiny", "dense", traffic)
    caller.reset(token)
    timings = Timings(0.0, scheduled_s, None, 2.0, num_tokens)
    limits.finished(labels, num_prompt_tokens, FinishReason.ABORT, timings)


async def retry_after_s(limits: KeyLimits, key: ApiKey) -> int:
    """0 if a generation is admitted."""
    try:
        await limits.admit(key, is_generation=True)
    except TokenQuotaReached as refusal:
        return refusal.retry_after_s
    return 0


def used(client: redis.Redis) -> int:
    found: Any = client.hvals(TENANT_TOKENS.format(name=TENANT))
    return sum(map(int, found))


def let_pass(client: redis.Redis, seconds: int) -> None:
    """As if all that is in Redis had come earlier."""
    name = TENANT_TOKENS.format(name=TENANT)
    found: Any = client.hgetall(name)
    if found:
        client.delete(name)
        client.hset(name, mapping={int(second) - seconds: num for second, num in found.items()})
        client.expire(name, WINDOW_S)


@dataclass
class Model:
    """What has to hold, in seconds that pass only when they are told to."""

    tokens: int
    now: int = 0
    charged: list[tuple[int, int]] = field(default_factory=list)

    def retry_after_s(self) -> int:
        last = [(at, num) for at, num in self.charged if self.now - at < WINDOW_S]
        for number in range(len(last) + 1):
            if sum(num for _, num in last[number:]) < self.tokens:
                return last[number - 1][0] + WINDOW_S - self.now if number else 0
        raise AssertionError


# seconds pass in tens: the test itself may take less than that, and changes nothing
STEPS = st.one_of(
    st.tuples(st.just("pass"), st.integers(1, 7)),
    st.tuples(st.just("generate"), st.integers(0, 4)),
    st.tuples(st.just("ask"), st.just(0)),
)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 6), steps=st.lists(STEPS, max_size=20))
def test_generations_are_admitted_as_the_model_says(
    redis_client: redis.Redis, redis_url: str, tokens: int, steps: list[tuple[str, int]]
) -> None:
    redis_client.flushdb()
    model, key = Model(tokens), key_of(tokens)

    async def main() -> None:
        async with limits_at(redis_url) as limits:
            for what, value in steps:
                if what == "pass":
                    await limits.admit(key_of(99), is_generation=True)  # all is charged
                    model.now += 10 * value
                    let_pass(redis_client, 10 * value)
                    continue
                expected = model.retry_after_s()
                found = await retry_after_s(limits, key)
                assert expected - 9 <= found <= expected
                assert (found == 0) == (expected == 0)
                if what == "generate" and not found:
                    end(limits, key, value)
                    model.charged.append((model.now, value))

    run(main())


def test_the_next_request_knows_what_the_last_has_used_in_every_process(
    redis_client: redis.Redis, redis_url: str
) -> None:
    one, other = key_of(10, "a"), key_of(10, "b")

    async def main() -> None:
        async with limits_at(redis_url) as first, limits_at(redis_url) as second:
            for key, num_tokens in ((one, 4), (other, 5)):
                assert await retry_after_s(first, key) == 0
                end(first, key, num_tokens)
            assert await retry_after_s(first, one) == 0
            end(first, one, 0, num_prompt_tokens=1)
            assert 50 <= await retry_after_s(first, other) <= WINDOW_S  # however fast it asks
            assert await retry_after_s(second, one) > 0
            assert await first.admit(one, is_generation=False) is None
            refusals = first._metrics.registry.get_sample_value(
                "sleb_key_limit_refusals_total", {"limit": "tokens"}
            )
            assert refusals == 1
        assert used(redis_client) == 10
        assert 0 < redis_client.ttl(TENANT_TOKENS.format(name=TENANT)) <= WINDOW_S

    run(main())


def test_no_token_is_lost_or_charged_twice(redis_client: redis.Redis, redis_url: str) -> None:
    key = key_of(10**6)

    async def main() -> None:
        async with limits_at(redis_url) as limits:

            async def generate(number: int) -> None:
                await limits.admit(key, is_generation=True)
                end(limits, key, number)

            await asyncio.gather(*(generate(number) for number in range(200)))
        assert used(redis_client) == sum(range(200))  # what is not sent yet is at the end

    run(main())


def test_a_request_that_is_cancelled_while_it_waits_loses_no_token(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a charge on its way, behind which there is another to be made."""
    key, going = key_of(10), asyncio.Event()

    async def main() -> None:
        async with limits_at(redis_url) as limits:
            charge = limits._charge

            async def held(**given: Any) -> None:
                await going.wait()
                await charge(**given)

            monkeypatch.setattr(limits, "_charge", held)
            end(limits, key, 5)
            end(limits, key, 7)
            asked = [asyncio.create_task(retry_after_s(limits, key)) for _ in range(2)]
            await asyncio.sleep(0)  # both wait
            asked[0].cancel()
            going.set()
            assert await asked[1] > 0  # as all 12 tokens are charged
            assert asked[0].cancelled()
        assert used(redis_client) == 12

    run(main())


def test_only_what_was_done_for_a_tenant_with_a_quota_is_charged(
    redis_client: redis.Redis, redis_url: str
) -> None:
    async def main() -> None:
        async with limits_at(redis_url) as limits:
            end(limits, None, 3)
            end(limits, key_of(None), 3)
            end(limits, key_of(0), 3)
            end(limits, key_of(10), 3, traffic="shadow")
            end(limits, key_of(10), 0, num_prompt_tokens=7, scheduled_s=None)  # never began
        assert redis_client.keys() == []
        async with limits_at(redis_url, default_quota=Quota(tokens_per_min=5)) as limits:
            end(limits, key_of(0), 3)
            end(limits, key_of(None), 3, traffic="bench")
            end(limits, key_of(None), 0, num_prompt_tokens=2)
            assert await retry_after_s(limits, key_of(None)) > 0
            assert await retry_after_s(limits, key_of(0)) == 0
            end(limits, key_of(None), 4)
        assert used(redis_client) == 9  # what has just ended is charged before the process ends

    run(main())


def test_a_request_that_the_quota_refuses_counts_for_no_other_limit(
    redis_client: redis.Redis, redis_url: str
) -> None:
    async def main() -> None:
        async with limits_at(redis_url) as limits:
            end(limits, key_of(1), 1)
            for _ in range(3):
                assert await retry_after_s(limits, key_of(1, rate=2)) > 0
            for _ in range(2):
                assert await retry_after_s(limits, key_of(2, rate=2)) == 0
        assert used(redis_client) == 1

    run(main())


def test_without_redis_generations_are_admitted_and_not_charged() -> None:
    key = key_of(1)

    async def main(server: ValkeyServer) -> None:
        async with limits_at(server.url) as limits:
            for _ in range(3):
                assert await retry_after_s(limits, key) == 0
                end(limits, key, 5)
            registry = limits._metrics.registry
            assert registry.get_sample_value("sleb_key_limits_unknown_total") == 3
            limits.pause_s = 0.01
            with server.start():
                server.wait_until_it_answers()
                with redis.Redis.from_url(server.url) as client:
                    while not used(client):
                        end(limits, key, 1)
                        await asyncio.sleep(0.01)
                assert await retry_after_s(limits, key) > 0
                server.process.terminate()

    with TemporaryDirectory(prefix="sleb-") as directory:
        run(main(ValkeyServer(Path(directory))))


@pytest.mark.parametrize(("seconds", "told"), [(-1.0, 1), (0.2, 1), (1.2, 2), (59.1, 60)])
def test_retry_after_is_never_too_early(seconds: float, told: int) -> None:
    refusal = TokenQuotaReached(TENANT, 1, seconds)
    assert refusal.retry_after_s == told
    assert str(refusal) == (
        f"Token quota of tenant 'team' exceeded: 1 token per minute. Retry in {told} s."
    )
