"""The pages as a part of the service: where they lead, who may see them, and its state."""

from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from app.web.assets import packaged_assets
from app.web.routes import CSP, PAGES
from pruning.jobs.job import JobStatus


def test_the_root_leads_to_the_pages(client: TestClient) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/ui")
    assert client.get("/").headers["content-security-policy"] == CSP
    docs = client.get("/docs")
    assert docs.headers["content-security-policy"] == CSP
    assert docs.headers["x-content-type-options"] == "nosniff"
    assert client.get("/redoc").status_code == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "/ui" in path]
    refused = client.get("/ui", headers={"Host": "rebound.example"})
    assert (refused.status_code, refused.json()["type"]) == (403, "not-local")


def test_the_status_names_device_memory_and_workers(client: TestClient) -> None:
    found = client.get("/status").json()
    assert (found["status"], found["detail"]) == ("ready", None)
    assert found["memory"]["device"] == "cpu"
    assert found["memory"]["free_bytes"] > found["memory"]["weight_bytes"] > 0
    assert found["engine"] == {
        "num_running": 0,
        "num_waiting": 0,
        "kv_cache_usage": 0.0,
        "num_preemptions": 0,
        "num_prefix_hits": 0,
        "num_prefix_queries": 0,
    }
    assert found["jobs"]["num_jobs"] == dict.fromkeys(JobStatus, 0)
    assert (found["jobs"]["num_workers"], found["jobs"]["queue_age_s"]) == (0, 0.0)


def test_what_pages_read_first_is_there(client: TestClient) -> None:
    for path in {path for page in PAGES for path in page.reads if "{" not in path}:
        assert client.get(path).status_code == 200, path


def test_frames_need_no_key_and_data_does(client: TestClient, settings: ServeSettings) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    for path in ("/", "/ui", "/ui/nowhere", packaged_assets().url("style.css"), "/docs"):
        assert client.get(path).status_code in (200, 404), path
    assert client.get("/status").status_code == 401
    assert client.get("/uix").status_code == 401
    assert client.get("/status", headers={"Authorization": f"Bearer {key}"}).status_code == 200
