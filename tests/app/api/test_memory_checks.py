"""Jobs that no worker of this machine has the memory for: refused with what to change."""

from typing import Any

import pytest

from app.config import ServeSettings
from tests.support.prune_requests import JOB
from tests.support.serving import local_api

HEAL = {"num_tokens": 64, "batch_tokens": 32, "rank": 4096}
WORDS = {"model": "the search needs", "repair": "repair=ridge needs", "heal": "healing needs"}


@pytest.mark.parametrize(
    ("total_bytes", "changes", "param"),
    [
        (100_000, {}, "model"),
        (100_000, {"repair": "auto"}, "model"),
        (320_000, {"repair": "ridge"}, "repair"),
        (320_000, {"repair": "auto"}, None),
        (10_000_000, {"heal": HEAL}, "heal"),
        (10_000_000, {"heal": {**HEAL, "rank": 2}}, None),
    ],
)
def test_what_does_not_fit_is_refused_and_by_a_dry_run_too(
    settings: ServeSettings,
    redis_url: str,
    total_bytes: int,
    changes: dict[str, Any],
    param: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.main.total_bytes", lambda _device: total_bytes)
    bodies = [{**JOB, **changes}, {**JOB, **changes, "dry_run": True}]
    with local_api(settings, redis_url, preload=()) as client:
        answers = [client.post("/prune-jobs", json=body) for body in bodies]
    if param is None:
        assert [each.status_code for each in answers] == [202, 200], answers[0].text
        return
    first, second = (each.json() for each in answers)
    assert [each.status_code for each in answers] == [422, 422]
    assert first == second
    assert (first["type"], first["param"]) == ("memory-too-small", param)
    assert WORDS[param] in first["detail"]
    assert f"this machine has {total_bytes}" in first["detail"]


def test_workers_elsewhere_may_have_more(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.total_bytes", lambda _device: 1)
    there = settings.model_copy(update={"redis_url": redis_url})
    with local_api(there, redis_url, preload=()) as client:
        assert client.post("/prune-jobs", json=JOB).status_code == 202
