"""The audit log: every request is in it, before anything is done for it."""

import asyncio
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.api.middleware import AuthMiddleware
from app.auth.audit import AuditLog, AuditUnavailable
from app.auth.keys import KeyFile, Scope
from app.auth.scopes import authorizer_of
from app.config import ServeSettings
from tests.support.prune_requests import JOB
from tests.support.serving import local_api


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def settings(data_dir: Path, path: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, max_num_seqs=8, drain_s=0, preload=(), audit_log=path)


@pytest.fixture
def keys(settings: ServeSettings) -> KeyFile:
    return KeyFile(settings.keys_file)


@pytest.fixture
def client(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, keys: KeyFile
) -> Iterator[TestClient]:
    """Without its probes of readiness, as all probes."""
    redis_client.ping()
    keys.create("root", [Scope.ADMIN])
    with local_api(settings, redis_url) as client:
        yield client


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_request_is_there_with_who_what_and_from_where(
    client: TestClient, keys: KeyFile, path: Path
) -> None:
    ann = auth(keys.create("ann", [Scope.JOBS], tenant="team", rate_per_min=4))
    calls: list[tuple[str, str, dict[str, str], int, str | None]] = [
        ("GET", "/prune-jobs?limit=3", ann, 200, None),
        ("GET", "/prune-jobs/prn-1", ann, 404, None),
        ("POST", "/prune-jobs", ann, 422, None),
        ("POST", "/generate", ann, 403, "scope-missing"),
        ("PATCH", "/prune-jobs", ann, 405, None),
        ("GET", "/prune-jobs", ann, 429, "key-limit-reached"),
        ("GET", "/prune-jobs", {}, 401, "invalid-api-key"),
        ("GET", "/prune-jobs", auth("sleb_none"), 401, "invalid-api-key"),
        ("GET", "/nowhere", {}, 401, "invalid-api-key"),
        ("GET", "/version", {}, 200, None),
    ]
    for method, url, headers, status, _ in calls:
        assert client.request(method, url, headers=headers).status_code == status
    found = lines(path)
    assert [line["event"] for line in found] == ["request", "response"] * len(calls)
    for call, asked, answered in zip(calls, found[::2], found[1::2], strict=True):
        method, url, headers, status, refused = call
        known = headers is ann
        assert (asked["method"], asked["path"]) == (method, url.split("?")[0])
        assert (asked["key"], asked["tenant"]) == (("ann", "team") if known else (None, None))
        assert (asked["refused"], answered["status"]) == (refused, status)
        assert asked["request_id"] == answered["request_id"]
        assert asked["client"] == "testclient"
        assert asked["at"] <= answered["at"]
    assert found[0]["query"] == "limit=3"
    assert "sleb_none" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_probes_are_not_requests_of_anybody(client: TestClient, path: Path) -> None:
    for url in ("/health/live", "/health/ready", "/metrics"):
        assert client.get(url).status_code == 200
    assert lines(path) == []


def test_what_cannot_be_noted_is_not_done(
    client: TestClient, keys: KeyFile, path: Path, redis_client: redis.Redis
) -> None:
    root = auth(keys.create("other", [Scope.ADMIN]))
    path.unlink()
    path.mkdir()
    refusal = client.post("/prune-jobs", json=JOB, headers=root)
    assert (refusal.status_code, refusal.json()["type"]) == (503, "audit-unavailable")
    assert int(refusal.headers["Retry-After"]) > 0
    assert "SLEB_AUDIT_LOG" in refusal.json()["detail"]
    assert client.get("/prune-jobs").status_code == 503
    assert redis_client.keys("sleb:job*") == []
    assert client.get("/health/live").status_code == 200
    path.rmdir()
    assert client.post("/prune-jobs", json=JOB, headers=root).status_code == 202
    assert len(lines(path)) == 2


def test_the_line_is_there_before_the_work_and_even_a_crash_leaves_it(
    settings: ServeSettings, path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    async def app(*_: Any) -> None:
        seen.extend(lines(path))
        raise RuntimeError("a defect")

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    middleware = AuthMiddleware(app, authorizer_of(settings), AuditLog(path))
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/models", "headers": headers}
    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(middleware(scope, nothing, nothing))
    assert [line["path"] for line in seen] == ["/models"]
    assert [line.get("status", "") for line in lines(path)] == ["", None]


def test_a_file_that_is_moved_away_is_begun_again(path: Path) -> None:
    log, scope = AuditLog(path), {"method": "GET", "path": "/models"}
    log.asked(scope, None)
    path.rename(path.with_suffix(".1"))
    log.asked(scope, None)
    assert len(lines(path)) == len(lines(path.with_suffix(".1"))) == 1


def test_a_line_that_a_full_disk_has_cut_does_not_spoil_the_next(path: Path) -> None:
    path.write_bytes(b'{"at": "2026-01-01T00:0')
    AuditLog(path).asked({"method": "GET", "path": "/models"}, None)
    cut, whole = path.read_text().splitlines()
    assert cut.startswith('{"at"')
    assert json.loads(whole)["path"] == "/models"


def test_lines_of_many_writers_do_not_mix(path: Path) -> None:
    logs = [AuditLog(path) for _ in range(8)]
    scope = {"method": "GET", "path": "/" + "x" * 1500}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda log: [log.asked(scope, None) for _ in range(50)], logs))
    assert len(lines(path)) == 400


@pytest.mark.parametrize(("uid", "user"), [(0, "root"), (4_000_000, "4000000")])
def test_a_command_names_its_user_or_the_number_of_one_without_a_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, user: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    AuditLog(path).commanded("keys revoke", {"name": "alice"})
    assert lines(path)[0].items() >= {"user": user, "name": "alice"}.items()


def test_a_log_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(AuditUnavailable, match="SLEB_AUDIT_LOG"):
        AuditLog(tmp_path / "nowhere" / "audit.jsonl")


def test_the_description_of_the_api_says_what_is_not_accepted(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            told = operation["responses"].get("503", {"description": ""})["description"]
            is_probe = path.startswith(("/health", "/ping", "/metrics"))
            assert ("audit log" in told) != is_probe, path
