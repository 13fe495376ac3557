"""``POST /frontiers``: real measurements of a tiny model, by a process of their own."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from tests.support.api_fixtures import publish_pruned
from tests.support.event_text import events_of
from tests.support.serving import serving
from tests.support.waiting import wait_until

BODY: dict[str, Any] = {
    "model": "tiny",
    "loads": ["stream"],
    "max_ratio": 1e6,
    "max_minutes": 0.1,
    "tasks": [],
}


def test_a_frontier_is_measured_and_kept(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    answer = client.post("/frontiers", json={**BODY, "stream": True})
    assert answer.status_code == 200, answer.text
    *steps, (last, found) = events_of(answer.text)
    assert last == "done", found
    assert {name for name, _ in steps} == {"progress"}
    assert any(data["step"].startswith("Measuring one stream") for _, data in steps)
    assert (found["kind"], found["model"]) == ("frontier", "tiny")
    assert found["headline"] == found["report"]["sentence"]
    names = {point["name"] for point in found["report"]["points"]}
    assert {"tiny", "tiny+int8", "tiny@-1", "tiny@-2"} <= names
    assert found["report"]["limits"]["max_ratio"] == 1e6
    assert client.get(f"/results/{found['id']}").json() == found
    advice = client.get("/models/tiny/advice", params={"max_ratio": 1e6}).json()
    assert {"prose", "code", "documentation"} <= advice["depths"][0]["ratios"].keys()


@pytest.mark.slow
def test_one_is_measured_at_a_time_and_ends_with_its_connection(
    settings: ServeSettings, redis_url: str
) -> None:
    with serving(settings, redis_url) as (_, url), httpx2.Client(base_url=url) as client:
        long = {**BODY, "max_minutes": 30, "stream": True}
        with client.stream("POST", "/frontiers", json=long) as measured:
            assert next(measured.iter_lines()).startswith("event: progress")
            busy = client.post("/frontiers", json=BODY)
            assert (busy.status_code, busy.json()["title"]) == (
                409,
                "Another frontier is being measured.",
            )
        short = {**BODY, "max_minutes": 0}
        wait_until(
            lambda: client.post("/frontiers", json=short, timeout=60).status_code == 200,
            "the first measurement has ended",
        )


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "nothing"}, 404, "nothing"),
        ({"model": "tiny+int8"}, 422, "name the dense model"),
        ({"loads": ["fast"]}, 422, "'fast' is no load"),
        ({"loads": []}, 422, "loads"),
        ({"max_ratio": 0.5}, 422, "max_ratio"),
        ({"max_minutes": 1e9}, 422, "max_minutes"),
        ({"tasks": ["gen_key", "nothing"]}, 422, "unknown tasks: nothing"),
        ({"tasks": ["hellaswag"]}, 422, "unknown tasks: hellaswag"),
        ({"tasks": ["gen_key"], "task_questions": 1}, 422, "task_questions"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    client: TestClient, change: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/frontiers", json=BODY | change)
    assert answer.status_code == status, answer.text
    assert words in answer.text
