"""Bodies that take long to parse are refused before, and imports are no garbage to look through."""

import gc
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.problems import MAX_ITEMS, MAX_NESTED
from app.server import serve

JSON = {"content-type": "application/json"}
PATHS = ["/generate", "/v1/completions", "/compare", "/prune-jobs", "/heal-jobs"]


HOSTILE = {
    "lists": b"[" + b",".join([b"[]"] * MAX_NESTED) + b"]",
    "deep lists": b"[" * (MAX_NESTED + 1),
    "objects": b"[" + b",".join([b'{"a":{}}'] * (MAX_NESTED // 2)) + b"]",
    "fields": b"{" + b",".join(b'"%d":1' % number for number in range(MAX_NESTED)) + b"}",
    "numbers": b"[" + b"1," * (MAX_ITEMS + 1) + b"1]",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_body_of_too_many_values_is_refused_unparsed(
    client: TestClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    loads = json.loads

    def noted(body: bytes, **given: Any) -> Any:
        parsed.append(body)
        return loads(body, **given)

    monkeypatch.setattr(json, "loads", noted)
    for path in PATHS:
        refused = client.post(path, content=HOSTILE[kind], headers=JSON)
        assert refused.status_code == 413, path
        told = loads(refused.content)
        problem = told["error"] if path.startswith("/v1/") else told
        assert (problem.get("code") or problem["type"]).replace("_", "-") == "too-many-values"
        assert f"{MAX_NESTED} brackets" in (problem.get("message") or problem["detail"])
    assert not [body for body in parsed if len(body) > MAX_NESTED]


def test_as_many_as_are_allowed_are_parsed(client: TestClient) -> None:
    """Text is counted as well, and a list of numbers has room for any context."""
    text = json.dumps({"model": "none", "prompt": "{[:" * ((MAX_NESTED - 3) // 3)}).encode()
    ids = json.dumps({"model": "none", "prompt": [1] * (MAX_ITEMS - 1)}).encode()
    assert client.post("/generate", content=text, headers=JSON).status_code == 404
    assert client.post("/v1/completions", content=ids, headers=JSON).status_code == 404


def test_what_lives_as_long_as_the_process_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    try:
        serve._leave_out_of_collections()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()
        gc.freeze()  # as the tests have it
