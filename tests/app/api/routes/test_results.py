"""The routes of results: what is kept is listed and read, by keys that may read jobs."""

from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore


def test_results_are_listed_and_read_with_their_report(
    client: TestClient, settings: ServeSettings
) -> None:
    assert client.get("/results").json() == {"object": "list", "data": [], "has_more": False}
    store = ResultStore(settings.data_dir)
    report = {"results": [{"variant": "tiny@-1"}]}
    kept = store.keep(ResultKind.BENCH, "tiny", "1.20×, faster", report)
    store.keep(ResultKind.BENCH, "tiny", "older", {}, "20200101T000000Z-bench-000000")
    first = client.get("/results", params={"limit": 1}).json()
    assert [result["id"] for result in first["data"]] == [kept]
    assert "report" not in first["data"][0]
    assert first["has_more"]
    rest = client.get("/results", params={"after": kept}).json()
    assert [result["headline"] for result in rest["data"]] == ["older"]
    found = client.get(f"/results/{kept}").json()
    assert (found["kind"], found["report"]) == ("bench", report)
    missing = client.get("/results/20200101T000000Z-bench-000001")
    assert (missing.status_code, missing.json()["type"]) == (404, "result-not-found")
    assert client.get("/results", params={"limit": 0}).status_code == 422

    keys = KeyFile(settings.keys_file)
    bearer = {scope: keys.create(scope, [scope]) for scope in (Scope.JOBS, Scope.GENERATE)}
    answers = {
        scope: client.get("/results", headers={"Authorization": f"Bearer {key}"}).status_code
        for scope, key in bearer.items()
    }
    assert answers == {Scope.JOBS: 200, Scope.GENERATE: 403}
