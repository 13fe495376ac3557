"""Requests with an Idempotency-Key over HTTP: sent twice, they make one job."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from tests.support.prune_requests import JOB, num_jobs, post_with_key

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


def test_the_same_request_gets_the_same_answer(client: TestClient) -> None:
    first = post_with_key(client, "k", metadata={"team": "platform"})
    assert (first.status_code, "idempotent-replayed" in first.headers) == (202, False)
    client.post(first.json()["urls"]["cancel"])
    again = post_with_key(client, "k", metadata={"team": "platform"})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.json() == first.json()
    for name in ("location", "retry-after"):
        assert again.headers[name] == first.headers[name]
    assert num_jobs(client) == 1


def test_how_the_body_is_written_does_not_matter(client: TestClient) -> None:
    first = post_with_key(client, "k")
    body = json.dumps(dict(reversed({**JOB, "protect_first": 1}.items())), indent=2)
    headers = {"Idempotency-Key": "k", "content-type": "application/json"}
    again = client.post("/prune-jobs", content=body, headers=headers)
    assert again.json()["id"] == first.json()["id"]


def test_another_body_under_the_same_key_is_refused(client: TestClient) -> None:
    post_with_key(client, "k")
    other = post_with_key(client, "k", num_remove=3)
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key-reused")
    assert other.json()["param"] == "Idempotency-Key"
    assert num_jobs(client) == 1


def test_while_the_first_is_in_flight_the_second_is_to_come_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is asked to check its disk, and meanwhile comes the second."""
    seconds: list[Response] = []
    usage = shutil.disk_usage

    def asked(path: Path) -> Any:
        monkeypatch.undo()
        seconds.append(post_with_key(client, "k"))
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", asked)
    first = post_with_key(client, "k")
    [second] = seconds
    assert (first.status_code, second.status_code) == (202, 409)
    assert second.json()["type"].endswith("idempotency-in-flight")
    assert int(second.headers["retry-after"]) >= 1
    assert post_with_key(client, "k").json()["id"] == first.json()["id"]


@pytest.mark.parametrize("change", [{"model": "none"}, {"num_remove": 5}, {"surprise": 1}])
def test_a_refused_request_leaves_its_key_free(client: TestClient, change: dict[str, Any]) -> None:
    assert post_with_key(client, "k", **change).status_code in (404, 422)
    accepted = post_with_key(client, "k")
    assert accepted.status_code == 202
    assert "idempotent-replayed" not in accepted.headers


def test_the_key_of_a_deleted_job_makes_no_other(client: TestClient) -> None:
    urls = post_with_key(client, "k").json()["urls"]
    client.post(urls["cancel"])
    assert client.delete(urls["self"]).status_code == 204
    again = post_with_key(client, "k")
    assert again.status_code == 404
    assert "deleted" in again.json()["detail"]
    assert num_jobs(client) == 0


@pytest.mark.parametrize("key", ["k" * 256, "", "a\tb", "é"])
def test_a_key_is_short_and_printable(client: TestClient, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    answer = client.post("/prune-jobs", json=JOB, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["param"] == "Idempotency-Key"
