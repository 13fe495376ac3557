"""Limits of keys in a real Redis: against a model of them, between processes, and without Redis."""

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.auth.keys import ApiKey, Scope
from app.auth.limits import LEASE_S, WINDOW_S, KeyLimits, Lease, LimitReached
from pruning.jobs.keys import KEY_RUNNING
from tests.support.key_limits import limits_at, run
from tests.support.valkey_server import ValkeyServer

NAME = "a"


def key_of(rate_per_min: int | None = None, max_concurrent: int | None = None) -> ApiKey:
    return ApiKey(NAME, frozenset(Scope), "0" * 64, 0.0, rate_per_min, max_concurrent)


async def until(is_so: Callable[[], bool]) -> None:
    """The test ends after a minute if it never is."""
    while not is_so():
        await asyncio.sleep(0.01)


async def limit_of(limits: KeyLimits, key: ApiKey, *, is_generation: bool = True) -> str | None:
    """Which limit refuses a request, if any does; its lease is not left."""
    try:
        await limits.admit(key, is_generation=is_generation)
    except LimitReached as refusal:
        return refusal.limit
    return None


def let_pass(client: redis.Redis, seconds: float) -> None:
    """As if all that is in Redis had come earlier."""
    for name in client.scan_iter("sleb:key:*"):
        found: Any = client.zrange(name, 0, -1, withscores=True)
        for member, score in found:
            client.zadd(name, {member: score - seconds})


def leases(client: redis.Redis) -> dict[bytes, float]:
    found: Any = client.zrange(KEY_RUNNING.format(name=NAME), 0, -1, withscores=True)
    return dict(found)


def num_unknown(limits: KeyLimits) -> float:
    registry = limits._metrics.registry
    return registry.get_sample_value("sleb_key_limits_unknown_total") or 0


# ---- the model


@dataclass
class Model:
    """What the limits have to be, in seconds that pass only when they are told to."""

    rate: int
    at_once: int
    now: int = 0
    recent: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)  # a request to the end of its lease

    def ask(self, number: int, *, is_generation: bool) -> tuple[str | None, int]:
        """The limit that is reached, and when to come again."""
        within = [came for came in self.recent if self.now - came < WINDOW_S]
        if self.rate and len(within) >= self.rate:
            return "rate", within[-self.rate] + WINDOW_S - self.now
        holding = [until for until in self.running.values() if until > self.now]
        if is_generation and self.at_once and len(holding) >= self.at_once:
            return "concurrent", 1
        self.recent.append(self.now)
        if is_generation:
            self.running[number] = self.now + round(LEASE_S)
        return None, 0


# seconds pass in tens: the test itself may take less than that, and changes nothing
STEPS = st.one_of(
    st.tuples(st.just("pass"), st.integers(1, 7)),
    st.tuples(st.just("generate"), st.just(0)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 30)),
)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.integers(0, 4), at_once=st.integers(0, 3), steps=st.lists(STEPS, max_size=30))
def test_requests_are_admitted_as_the_model_says(
    redis_client: redis.Redis,
    redis_url: str,
    rate: int,
    at_once: int,
    steps: list[tuple[str, int]],
) -> None:
    redis_client.flushdb()
    model, key = Model(rate, at_once), key_of(rate, at_once)

    async def main() -> None:
        leases_: dict[int, Lease | None] = {}
        async with limits_at(redis_url) as limits:
            for number, (what, value) in enumerate(steps):
                if what == "pass":
                    model.now += 10 * value
                    let_pass(redis_client, 10 * value)
                elif what == "leave":
                    model.running.pop(value, None)
                    if lease := leases_.get(value):
                        await lease.release()
                else:
                    is_generation = what == "generate"
                    limit, retry_after_s = model.ask(number, is_generation=is_generation)
                    if limit is None:
                        leases_[number] = await limits.admit(key, is_generation=is_generation)
                        continue
                    with pytest.raises(LimitReached) as refused:
                        await limits.admit(key, is_generation=is_generation)
                    assert refused.value.limit == limit
                    assert retry_after_s - 9 <= refused.value.retry_after_s <= retry_after_s

    run(main())


# ---- whose limits


def test_a_key_has_its_own_limits_or_those_of_the_settings(
    redis_client: redis.Redis, redis_url: str
) -> None:
    async def main() -> None:
        async with limits_at(redis_url, rate_per_min=3, max_concurrent=1) as limits:
            asked = [await limit_of(limits, key_of()) for _ in range(2)]
            assert asked == [None, "concurrent"]
            only_reads = [await limit_of(limits, key_of(), is_generation=False) for _ in range(3)]
            assert only_reads == [None, None, "rate"]
            redis_client.flushdb()
            asked = [await limit_of(limits, key_of(4, 2)) for _ in range(3)]
            assert asked == [None, None, "concurrent"]
            redis_client.flushdb()
            assert {await limit_of(limits, key_of(0, 0)) for _ in range(20)} == {None}
            assert redis_client.keys() == []

    run(main())


def test_without_limits_redis_is_not_asked() -> None:
    async def main() -> None:
        async with limits_at("unix:///nowhere") as limits:
            assert await limits.admit(key_of(), is_generation=True) is None
            assert await limits.admit(key_of(0, 5), is_generation=False) is None
            assert num_unknown(limits) == 0

    run(main())


def test_all_processes_count_together_however_they_race(
    redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.ping()

    async def main() -> None:
        async with limits_at(redis_url) as one, limits_at(redis_url) as other:
            for key, limit, most in ((key_of(7), "rate", 7), (key_of(0, 5), "concurrent", 5)):
                asked = await asyncio.gather(*(limit_of(each, key) for each in [one, other] * 15))
                assert sorted(map(str, asked)) == ["None"] * most + [limit] * (30 - most)

    run(main())


def test_no_limit_is_skipped_because_many_ask_at_once(
    redis_client: redis.Redis, redis_url: str
) -> None:
    """More than redis-py opens connections."""
    redis_client.ping()

    async def main() -> None:
        async with limits_at(redis_url) as limits:
            asked = await asyncio.gather(*(limit_of(limits, key_of(7)) for _ in range(150)))
            assert asked.count(None) == 7
            assert num_unknown(limits) == 0

    run(main())


@pytest.mark.parametrize(
    ("seconds", "told"), [(-1.0, 1), (0.0, 1), (0.2, 1), (1.2, 2), (59.0, 59), (59.1, 60)]
)
def test_retry_after_is_never_too_early(seconds: float, told: int) -> None:
    assert LimitReached("so many", "rate", seconds).retry_after_s == told


def test_two_keys_have_nothing_to_do_with_each_other(redis_url: str) -> None:
    async def main() -> None:
        async with limits_at(redis_url, rate_per_min=1, max_concurrent=1) as limits:
            for name in ("a", "b"):
                key = ApiKey(name, frozenset(Scope), "0" * 64, 0.0)
                assert [await limit_of(limits, key) for _ in range(2)] == [None, "rate"]

    run(main())


# ---- leases


def test_a_lease_is_kept_while_it_is_used_and_free_when_it_is_left(
    redis_client: redis.Redis, redis_url: str
) -> None:
    key = key_of(0, 1)

    async def main() -> None:
        async with limits_at(redis_url) as limits:
            limits.renew_every_s = 0.01
            lease = await limits.admit(key, is_generation=True)
            assert lease is not None
            [began] = leases(redis_client).values()
            for _ in range(3):
                let_pass(redis_client, LEASE_S - 1)
                await until(lambda: min(leases(redis_client).values()) >= began)
            redis_client.flushdb()  # a Redis that has lost it is told again
            await until(lambda: len(leases(redis_client)) == 1)
            assert await limit_of(limits, key) == "concurrent"
            for _ in range(2):
                await lease.release()
            assert leases(redis_client) == {}
            assert await limit_of(limits, key) is None

    run(main())


def test_what_a_process_held_that_died_is_free_when_its_lease_is_over(
    redis_client: redis.Redis, redis_url: str
) -> None:
    async def die() -> None:
        async with limits_at(redis_url) as limits:
            assert await limit_of(limits, key_of(0, 1)) is None

    async def ask(expected: str | None) -> None:
        async with limits_at(redis_url) as limits:
            assert await limit_of(limits, key_of(0, 1)) == expected

    run(die())
    let_pass(redis_client, LEASE_S - 10)
    run(ask("concurrent"))
    let_pass(redis_client, 10)
    run(ask(None))


def test_what_is_kept_of_a_key_goes_when_it_says_nothing_any_more(
    redis_client: redis.Redis, redis_url: str
) -> None:
    async def main() -> None:
        async with limits_at(redis_url) as limits:
            await limits.admit(key_of(5, 5), is_generation=True)

    run(main())
    found: Any = redis_client.keys()
    lives = sorted(redis_client.ttl(name) for name in found)
    assert len(lives) == 2
    assert 0 < lives[0] <= LEASE_S
    assert lives[0] <= lives[1] <= WINDOW_S


# ---- without Redis


def test_without_redis_requests_are_admitted_and_it_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    key = key_of(2, 1)

    async def main(server: ValkeyServer) -> None:
        async with limits_at(server.url) as limits:
            limits.renew_every_s = 0.01
            leases_ = [await limits.admit(key, is_generation=True) for _ in range(5)]
            assert num_unknown(limits) == 5
            assert caplog.text.count("Redis does not respond") == 1
            limits.pause_s = 0.01
            with server.start():
                server.wait_until_it_answers()
                with redis.Redis.from_url(server.url) as client:
                    await until(lambda: len(leases(client)) == 5)  # all that run are told of
                assert await limit_of(limits, key) == "concurrent"
                for lease in leases_:
                    assert lease is not None
                    await lease.release()
                asked = [await limit_of(limits, key, is_generation=False) for _ in range(3)]
                assert asked == [None, None, "rate"]
                server.process.terminate()

    with TemporaryDirectory(prefix="sleb-") as directory:
        run(main(ValkeyServer(Path(directory))))


def test_a_redis_that_hangs_delays_one_request() -> None:
    async def main(server: ValkeyServer) -> None:
        async with limits_at(server.url) as limits:
            assert await limit_of(limits, key_of(2), is_generation=False) is None
            server.process.send_signal(signal.SIGSTOP)
            limits.pause_s = 60
            assert {await limit_of(limits, key_of(2)) for _ in range(1000)} == {None}
            assert num_unknown(limits) == 1000
            server.process.send_signal(signal.SIGCONT)

    with TemporaryDirectory(prefix="sleb-") as directory:
        server = ValkeyServer(Path(directory))
        with server.start():
            try:
                server.wait_until_it_answers()
                run(main(server))
            finally:
                server.process.send_signal(signal.SIGCONT)
                server.process.terminate()


def test_a_redis_that_refuses_the_question_refuses_no_request(
    redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.set(KEY_RUNNING.format(name=NAME), "no set", ex=60)

    async def main() -> None:
        async with limits_at(redis_url) as limits:
            assert await limit_of(limits, key_of(0, 1)) is None
            assert num_unknown(limits) == 1

    run(main())
