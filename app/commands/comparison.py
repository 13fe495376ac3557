"""Dense against pruned on the same prompts and lengths, in turn, over HTTP: the demo's figures."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The three primary colours are",
    "Once upon a time, in a small village by the sea,",
)
MAX_NEW_TOKENS = 48
ROUNDS = 3  # an odd number, after one round to warm up


@dataclass(frozen=True)
class Side:
    """One variant: the catalogue's facts, medians over the rounds in seconds, one completion."""

    model: dict[str, Any]
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    completion: str


def measure(client: httpx2.Client, names: Sequence[str]) -> list[Side]:
    """A B A B A B, equal prompts and forced equal lengths, so that only the depth differs."""
    rounds = [[_generate(client, name) for name in names] for _ in range(1 + ROUNDS)][1:]
    return [
        Side(
            model=client.get(f"/models/{name}").raise_for_status().json(),
            ttft_s=statistics.median(one[column].ttft_s for one in rounds),
            tpot_s=statistics.median(one[column].tpot_s for one in rounds),
            tokens_per_s=statistics.median(one[column].tokens_per_s for one in rounds),
            completion=rounds[-1][column].completion,
        )
        for column, name in enumerate(names)
    ]


@dataclass(frozen=True)
class _Round:
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    completion: str


def _generate(client: httpx2.Client, name: str) -> _Round:
    body = {
        "model": name,
        "prompt": list(PROMPTS),
        "max_new_tokens": MAX_NEW_TOKENS,
        "ignore_eos": True,
    }
    began_s = time.monotonic()
    response = client.post("/generate", json=body, timeout=300).raise_for_status()
    took_s = time.monotonic() - began_s
    outputs = response.json()["outputs"]
    return _Round(
        ttft_s=statistics.mean(output["timings"]["ttft_s"] for output in outputs),
        tpot_s=statistics.mean(output["timings"]["tpot_s"] for output in outputs),
        tokens_per_s=sum(output["completion_tokens"] for output in outputs) / took_s,
        completion=outputs[0]["text"],
    )
