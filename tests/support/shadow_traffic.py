"""Shadow traffic of a real service: requests that are replayed, counts, and engines that wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.compare import shadow
from app.compare.shadow import MAX_PAIRS_AT_ONCE
from app.config import ServeSettings
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, TokenEvent
from app.engine.step import NEVER, Interruption
from app.server.serve import ApiServer
from tests.support.exposition import Scrape
from tests.support.serving import serving
from tests.support.waiting import wait_until

PAIR = {"live_model": "tiny@-2", "shadow_model": "tiny"}
LIVE = {"variant": "pruned", "traffic": "live", **PAIR}
SHADOW = {"variant": "dense", "traffic": "shadow", **PAIR}
REASONS = (
    *("busy", "overload", "unseeded", "no_counterpart", "unloaded", "error", "stopped"),
    "warming_up",
)


def share_of_controls(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(shadow, "CONTROL_SHARE", share)


def generate(client: TestClient, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny@-2", "prompt": "the dog", "max_new_tokens": 9, **body}
    response = client.post("/generate", json=asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def scraped(client: TestClient) -> Scrape:
    return Scrape(client.get("/metrics").text)


def num_done(client: TestClient, **pair: str) -> float:
    return scraped(client).value("sleb_shadow_done_total", **{**PAIR, **pair}) or 0


def num_dropped(scrape: Scrape, reason: str, live_model: str = "tiny@-2") -> float:
    labels = {"live_model": live_model, "reason": reason}
    return scrape.value("sleb_shadow_dropped_total", **labels) or 0


def counts(client: httpx2.Client) -> dict[str, float]:
    """Replays done, and dropped by reason; without zeros."""
    scrape = Scrape(client.get("/metrics").text)
    done = scrape.value("sleb_shadow_done_total", **PAIR) or 0
    found = {"done": done} | {reason: num_dropped(scrape, reason) for reason in REASONS}
    return {name: number for name, number in found.items() if number}


def share_of_the_longer(ours: list[int], theirs: list[int]) -> float:
    pairs = zip(ours, theirs, strict=False)
    shortest = min(len(ours), len(theirs))
    common = next((at for at, (one, two) in enumerate(pairs) if one != two), shortest)
    return common / max(len(ours), len(theirs))


@contextmanager
def served(
    settings: ServeSettings, redis_url: str, engine: Engine | None = None
) -> Iterator[tuple[ApiServer, httpx2.Client]]:
    with (
        serving(settings, redis_url, engine=engine) as (server, url),
        httpx2.Client(base_url=url) as client,
    ):
        wait_until(lambda: client.get("/health/ready").is_success, "the API is ready")
        yield server, client


class Noting(Engine):
    """Knows on which models it was given replays, in this order."""

    def __init__(self, limits: EngineLimits) -> None:
        super().__init__(limits)
        self.replayed: list[str] = []

    def add(self, request: Request) -> None:
        if request.is_background:
            self.replayed.append(request.variant.name)
        super().add(request)


class Held(Engine):
    """Its background steps wait for the gate."""

    def __init__(self, max_num_seqs: int = 2 * MAX_PAIRS_AT_ONCE) -> None:
        super().__init__(EngineLimits(max_num_seqs=max_num_seqs))
        self.gate = threading.Event()
        self.num_at_gate = 0

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        if self.has_work and not self.has_live_work:
            self.num_at_gate += 1
            self.gate.wait()
        return super().step(interruption)


@contextmanager
def holding(engine: Held) -> Iterator[Held]:
    try:
        yield engine
    finally:
        engine.gate.set()


def body_of(num_prompts: int, max_new_tokens: int) -> dict[str, Any]:
    prompts = [f"the dog {number}" for number in range(num_prompts)]
    limits = {"max_new_tokens": max_new_tokens, "ignore_eos": True}
    return {"model": "tiny@-2", "prompt": prompts, **limits}
