"""Unknown query parameters are refused on every route, as unknown fields are."""

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.web.assets import ROOT, packaged_assets
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.job_lives import succeed

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


def operations(client: TestClient) -> Iterator[tuple[str, str, list[str]]]:
    """Every documented operation: its method, a path, and its query parameters."""
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", ())
            names = [each["name"] for each in parameters if each["in"] == "query"]
            yield method.upper(), re.sub(r"\{[^}]+\}", "tiny", path), names


def test_every_route_refuses_a_parameter_that_it_does_not_have(client: TestClient) -> None:
    found = list(operations(client))
    assert len(found) > 30
    assert ("GET", "/metrics", []) in found
    for method, path, names in found:
        response = client.request(method, path, params={"zzzz": "true"})
        is_openai = path.startswith("/v1/")
        assert response.status_code == (400 if is_openai else 422), (method, path)
        document = response.json()
        hint = f"expected {', '.join(sorted(names))}" if names else "leave it out"
        error = document["error"] if is_openai else document
        assert error["param"] == "zzzz"
        said = error["message"] if is_openai else error["detail"]
        assert said.endswith(f"zzzz: unknown query parameter: {hint}")


def test_no_job_starts_with_a_parameter_that_is_refused(
    client: TestClient, job_store: JobStore
) -> None:
    body = {"model": "tiny", "num_remove": 1}
    response = client.post("/prune-jobs", params={"dry_run": "true"}, json=body)
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert detail == "/dry_run: unknown query parameter: send it as a field of the body"
    assert not job_store.list().jobs


def test_the_nearest_parameter_is_suggested(client: TestClient) -> None:
    query = {"limits": "1", "statu": "queued", "limit": "1"}
    errors = client.get("/prune-jobs", params=query).json()["errors"]
    assert {each["pointer"]: each["detail"] for each in errors} == {
        "/limits": "unknown query parameter: did you mean limit?",
        "/statu": "unknown query parameter: did you mean status?",
    }


def test_documented_parameters_are_taken(client: TestClient, job_store: JobStore) -> None:
    job_id = job_store.create(PruneSpec("tiny", num_remove=1)).id
    succeed(job_store, job_id)
    first = job_store.events(job_id, None, 1)[0].id
    values = {
        "limit": "1",
        "after": first,
        "status": "queued",
        "max_ratio": "1.2",
        "min_speedup": "1.2",
        "min_probe": "0.5",
        "min_task_share": "0.9",
        "load": "stream",
    }
    for method, path, names in operations(client):
        if names:
            known = {name: values[name] for name in names if "events" in path or name != "after"}
            real = path.replace("/prune-jobs/tiny", f"/prune-jobs/{job_id}")
            assert client.request(method, real, params=known).status_code == 200, path
    events = f"/prune-jobs/{job_id}/events"
    stream = {"accept": "text/event-stream"}
    assert client.get(events, params={"after": first}, headers=stream).text.count("\ndata: ") > 1
    assert client.get(events, params={"aftr": first}, headers=stream).status_code == 422


def test_pages_and_their_files_take_any(client: TestClient) -> None:
    assets = packaged_assets()
    name = next(iter(assets.by_name))
    for path in ("/", "/ui", "/ui/jobs", "/ui/curve", "/docs", f"{ROOT}/{assets.digest}/{name}"):
        assert client.get(path, params={"v": "1.2.3", "model": "tiny"}).status_code == 200, path
