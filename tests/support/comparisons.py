"""Comparisons of tiny variants by the API, and engines that note or time them."""

import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, TokenEvent
from app.engine.step import NEVER, Interruption

PROMPTS = ["the quick brown fox", "the dog"]
MODELS = ["tiny", "tiny@-1", "tiny@-3"]


def compare(client: TestClient, **body: Any) -> dict[str, Any]:
    asked = {"models": MODELS, "prompt": PROMPTS, "max_new_tokens": 12, "repeats": 2, **body}
    response = client.post("/compare", json=asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


class Noting(Engine):
    """Knows whose prompts were added, in this order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(EngineLimits(max_num_seqs=8), clock=clock)
        self.added: list[str] = []

    def add(self, request: Request) -> None:
        self.added.append(request.variant.name)
        super().add(request)


class Uneven(Engine):
    """Steps take ticks of its own clock: more with all blocks, and uneven ones in noisy controls.

    It expects comparisons of the dense model with one variant.
    """

    def __init__(self) -> None:
        # later than any request arrives, in binary fractions: rounding would be a difference
        self.now_s = round(time.monotonic()) + 1000.0
        self.is_control_noisy = False
        self.noise_ticks = 700
        self.num_noisy = 1000  # repeats until the noise ends
        self.num_dense = 0  # requests; the first two warm up
        self.scripted: dict[str, dict[str, str]] = {}
        super().__init__(EngineLimits(max_num_seqs=8), clock=lambda: self.now_s)

    def add(self, request: Request) -> None:
        super().add(request)
        self._sequences[request.request_id].kernels |= self.scripted.get(request.variant.name, {})
        self.num_dense += request.variant.name == "tiny"

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        names = {seq.request.variant.name for seq in self._sequences.values()}
        ticks = 1300 if "tiny" in names else 1000
        repeat, turn = divmod(self.num_dense - 3, 2)  # turns of the dense model
        is_control = turn == (1 if repeat % 3 == 0 else 0)
        is_noisy = self.is_control_noisy and repeat < self.num_noisy
        if "tiny" in names and is_control and is_noisy:
            ticks += self.noise_ticks if repeat % 2 else -self.noise_ticks
        self.now_s += ticks / 2**20
        return super().step(interruption)
