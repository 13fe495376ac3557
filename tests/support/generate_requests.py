"""``POST /generate`` from a test: the request, its response or its events, and what to expect."""

from collections.abc import Iterable
from typing import Any

import httpx2
import torch
from fastapi.testclient import TestClient
from transformers import GenerationMixin

from pruning.models.blocks import view
from pruning.models.store import LoadedModel

PROMPTS = ["the quick brown fox", "the dog", "naïve 数学 🦊 and the lazy dog sleeps"]


def generate(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/generate", json={"model": "tiny", "prompt": "the dog", **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def oracle(loaded: LoadedModel, prompt: str, keep: tuple[int, ...], num_tokens: int) -> list[int]:
    """The tokens that transformers generates, greedily, with the blocks ``keep``."""
    model = view(loaded.model, keep)
    assert isinstance(model, GenerationMixin)
    ids = torch.tensor([loaded.tokenizer(prompt).input_ids])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
    )
    assert isinstance(found, torch.Tensor)
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


Event = tuple[str, Any]


def events_in(source: Iterable[httpx2.ServerSentEvent]) -> list[Event]:
    """Name and data of each event; comments are left out."""
    return [(event.event, event.json()) for event in source if event.data]


def facts(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs without the fields that differ a little from run to run."""
    return [
        {name: value for name, value in output.items() if name not in ("timings", "logprobs")}
        for output in outputs
    ]
