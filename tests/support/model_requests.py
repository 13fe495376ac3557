"""Models loaded, unloaded and looked up over HTTP."""

from typing import Any

import httpx2
from fastapi.testclient import TestClient

from pruning.models.store import LoadedModel


def load(client: TestClient, name: str) -> httpx2.Response:
    return client.post(f"/models/{name}/load")


def unload(client: TestClient, name: str) -> httpx2.Response:
    return client.post(f"/models/{name}/unload")


def model(client: TestClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/models/{name}").json()
    return found


def num_bytes(loaded: LoadedModel) -> int:
    return sum(tensor.nbytes for tensor in loaded.model.parameters())
