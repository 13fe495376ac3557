"""Random traffic on one engine: every greedy output is right, no page is lost, memory is flat.

`make soak MINUTES=30` runs it, half of the time with each kind of kernels.
"""

import asyncio
import time
from collections import Counter

import psutil
import pytest
from rich.console import Console

from app.engine.async_engine import AsyncEngine
from app.engine.autotuning import OFF, Autotuner
from app.engine.running.flat_model import COMPILED
from app.engine.scheduling.scheduler import CacheCounts, EngineLimits
from tests.soak.duration import DURATION_S, MAX_GROWTH_BYTES, MIB, growth
from tests.soak.random_traffic import (
    LONGEST_OUTPUT,
    LONGEST_PROMPT,
    NUM_CLIENTS,
    CheckedEngine,
    RandomTraffic,
    long_model,
)
from tests.support.compiled import always
from tests.support.engine_requests import cache_bytes
from tests.support.engine_scenarios import until
from tests.support.integrity import check_engine

POOL_TOKENS = LONGEST_PROMPT + LONGEST_OUTPUT + 256  # of the dense variant: few beside a long one
_RELOAD_S = 10.0
_SAMPLE_S = 0.5
_MAX_FAILURES = 5  # then the test stops
_MAX_TIES = 1e-3  # of the tokens


async def soak(engine: CheckedEngine, traffic_s: float) -> tuple[RandomTraffic, list[int]]:
    """Run random traffic, and return samples of the memory of this process in bytes."""
    each = AsyncEngine(engine, max_waiting=NUM_CLIENTS, max_waiting_tokens=1 << 30)
    each.start()
    traffic, rss_bytes = RandomTraffic(each, long_model(), seed=time.time_ns()), list[int]()
    began_s, reloaded_s = time.monotonic(), 0.0
    traffic.start()
    while (now_s := time.monotonic() - began_s) < traffic_s and each.is_alive:
        await until(lambda: time.monotonic() - began_s >= now_s + _SAMPLE_S)
        rss_bytes.append(psutil.Process().memory_info().rss)
        if now_s >= reloaded_s + _RELOAD_S:
            await traffic.reload()
            reloaded_s = now_s
        if len(traffic.failures) >= _MAX_FAILURES:
            break
    await traffic.stop()
    await each.stop()
    return traffic, rss_bytes


def total(engine: CheckedEngine) -> CacheCounts:
    found: Counter[str] = Counter()
    for counts in engine.stats().cache_counts.values():
        found.update(vars(counts))
    return CacheCounts(**found)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 900)
@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_random_traffic_is_answered_as_if_each_request_were_alone(
    kernels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner: Autotuner = always(COMPILED) if kernels == "compiled" else OFF
    limits = EngineLimits(
        max_num_seqs=NUM_CLIENTS, kv_cache_bytes=cache_bytes(POOL_TOKENS), max_batch_tokens=256
    )
    engine = CheckedEngine(limits, tuner=tuner)
    traffic, rss_bytes = asyncio.run(soak(engine, DURATION_S / 2))
    counts, happened, oracle = total(engine), traffic.counts, traffic.oracle
    first, last = growth(rss_bytes)
    with capsys.disabled():
        Console(width=100, highlight=False).print(
            f"{kernels}, {DURATION_S / 2:g} s: {dict(happened)}, {engine.num_steps} steps",
            f"{oracle.num_tokens} greedy tokens, {oracle.num_ties} of them ties",
            f"prompts: {counts.num_hits} of {counts.num_queries} tokens were there; "
            f"{counts.num_preemptions} preemptions",
            f"{first / MIB:.0f} MiB when warm, {last / MIB:.0f} MiB at the end",
            sep="\n",
        )
    assert not traffic.failures
    assert oracle.num_ties <= _MAX_TIES * oracle.num_tokens
    assert min(counts.num_hits, counts.num_preemptions) > 0
    assert min(happened[name] for name in ("whole", "left", "long", "unloads")) > 0
    assert not engine.mend_idle()
    check_engine(engine)
    assert last - first < MAX_GROWTH_BYTES
