"""Sessions: signed, short, bound to a key that still exists, and to pages of this service."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.auth.sessions import (
    COOKIE,
    GENERATIONS,
    LIFETIME_S,
    MAX_LIFETIME_S,
    Session,
    Sessions,
)
from app.config import ServeSettings
from tests.support.clock import Clock
from tests.support.full_disk import full_disk
from tests.support.prune_requests import JOB

pytestmark = pytest.mark.usefixtures("nothing_preloaded")

HERE = {"Origin": "http://localhost"}


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(keys: KeyFile, tmp_path: Path, clock: Clock) -> Sessions:
    return Sessions(keys, tmp_path / "sessions.secret", clock=clock)


def began(sessions: Sessions, keys: KeyFile, key: str) -> Session:
    found = keys.find(key)
    assert found is not None
    return sessions.begin(found)


def test_a_cookie_is_good_until_its_end_and_not_for_another_directory(
    sessions: Sessions, keys: KeyFile, clock: Clock, tmp_path: Path
) -> None:
    session = began(sessions, keys, keys.create("a", [Scope.JOBS]))
    cookie = sessions.cookie(session)
    assert sessions.find(cookie) == session
    assert Sessions(keys, tmp_path / "other.secret").find(cookie) is None
    assert (tmp_path / "sessions.secret").stat().st_mode & 0o077 == 0
    clock.now += LIFETIME_S - 1
    assert sessions.find(cookie) == session
    clock.now += 1
    assert sessions.find(cookie) is None


def test_a_forged_cookie_is_refused(sessions: Sessions, keys: KeyFile) -> None:
    session = began(sessions, keys, keys.create("a", [Scope.JOBS]))
    keys.create("admin", [Scope.ADMIN])
    cookie = sessions.cookie(session)
    name, start, end, signature = cookie.split(":")
    for forged in (
        f"admin:{start}:{end}:{signature}",
        f"{name}:{start}:{int(end) + 1}:{signature}",
        f"{name}:{int(start) + 1}:{end}:{signature}",
        f"{name}:x:{end}:{signature}",
        cookie[:-1],
        cookie + "0",
        ":::",
        "",
        "é" * 4,
        "x" * 100_000,
    ):
        assert sessions.find(forged) is None, forged[:100]


def test_a_session_ends_with_its_key_also_if_the_name_is_used_again(
    sessions: Sessions, keys: KeyFile
) -> None:
    cookie = sessions.cookie(began(sessions, keys, keys.create("a", [Scope.JOBS])))
    keys.revoke("a")
    assert sessions.find(cookie) is None
    keys.create("a", [Scope.ADMIN])
    assert sessions.find(cookie) is None


def test_requests_extend_a_session_but_not_for_ever(
    sessions: Sessions, keys: KeyFile, clock: Clock
) -> None:
    session = first = began(sessions, keys, keys.create("a", [Scope.JOBS]))
    assert sessions.renewed(session) is None
    while clock.now < first.began_at + MAX_LIFETIME_S:
        clock.now += LIFETIME_S / 2
        session = sessions.renewed(session) or session
    assert session == replace(first, ends_at=first.began_at + MAX_LIFETIME_S)


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(
    client: TestClient, settings: ServeSettings
) -> None:
    assert client.get("/session").json()["requires_key"] is False
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    assert client.get("/session").json() == {
        "object": "session",
        "requires_key": True,
        "name": None,
        "scopes": [],
        "ends_at": None,
    }
    assert client.post("/session", json={"key": key + "x"}, headers=HERE).status_code == 401
    elsewhere = {"Origin": "https://elsewhere.example"}
    assert client.post("/session", json={"key": key}, headers=elsewhere).status_code == 403
    answer = client.post("/session", json={"key": key}, headers=HERE)
    assert (answer.json()["name"], answer.json()["scopes"]) == ("reader", ["jobs"])
    flags = answer.headers["set-cookie"]
    each = {flag.strip() for flag in flags.split(";")}
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= each
    [left_s] = [flag.removeprefix("Max-Age=") for flag in each if flag.startswith("Max-Age=")]
    assert 0 < int(left_s) <= LIFETIME_S
    assert key not in flags
    assert client.get("/prune-jobs").status_code == 200
    assert client.get("/session").json()["name"] == "reader"


def test_changes_come_from_pages_of_this_service_and_scopes_hold(
    client: TestClient, settings: ServeSettings
) -> None:
    keys = KeyFile(settings.keys_file)
    client.post("/session", json={"key": keys.create("reader", [Scope.JOBS])}, headers=HERE)
    body = {**JOB, "dry_run": True}
    for origin in (
        {},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://x"},
    ):
        refused = client.post("/prune-jobs", json=body, headers=origin)
        assert (refused.status_code, refused.json()["type"]) == (403, "not-same-origin"), origin
    assert client.post("/prune-jobs", json=body, headers=HERE).status_code == 200
    assert client.post("/models/tiny/unload", headers=HERE).json()["type"] == "scope-missing"
    cookie = client.cookies[COOKIE]
    assert client.delete("/session", headers=HERE).status_code == 204
    assert client.get("/prune-jobs").status_code == 401
    client.cookies.set(COOKIE, cookie)
    assert client.get("/prune-jobs").status_code == 401  # a copy of the cookie has ended too
    client.cookies.clear()
    again = keys.create("again", [Scope.JOBS])
    client.post("/session", json={"key": again}, headers=HERE)
    assert client.get("/prune-jobs").status_code == 200
    keys.revoke("again")
    assert client.get("/prune-jobs").status_code == 401


@pytest.mark.parametrize("name", ["Origin", "Host"])
def test_two_headers_of_one_name_are_refused(
    client: TestClient, settings: ServeSettings, name: str
) -> None:
    value = "http://localhost" if name == "Origin" else "localhost"
    twice = [("Origin", "http://localhost"), ("Host", "localhost"), (name, value)]
    refused = client.post("/prune-jobs", json={**JOB, "dry_run": True}, headers=twice)
    assert (refused.status_code, refused.json()["type"]) == (403, "not-local")
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    client.post("/session", json={"key": key}, headers=HERE)
    refused = client.post("/prune-jobs", json={**JOB, "dry_run": True}, headers=twice)
    assert refused.status_code == 403


def test_signing_out_ends_the_sessions_of_one_key_for_all_processes(
    sessions: Sessions, keys: KeyFile, tmp_path: Path, clock: Clock
) -> None:
    first = began(sessions, keys, keys.create("a", [Scope.JOBS]))
    other = began(sessions, keys, keys.create("b", [Scope.JOBS]))
    cookies = [sessions.cookie(first), sessions.cookie(other)]
    beside = Sessions(keys, tmp_path / "sessions.secret", clock=clock)
    assert beside.find(cookies[0]) == first
    sessions.end(first)
    assert (sessions.find(cookies[0]), beside.find(cookies[0])) == (None, None)
    assert (sessions.find(cookies[1]), beside.find(cookies[1])) == (other, other)
    assert beside.find(sessions.cookie(first)) == first  # signed in again
    for damaged in ("{", "[]", '{"a": "b"}', "[" * 100_000):
        (tmp_path / "sessions.json").write_text(damaged)
        assert beside.find(cookies[1]) is None


@pytest.mark.parametrize("damaged", ["{", "[]", '{"a": "b"}', "[" * 100_000, "", "\0"])
def test_a_sign_in_replaces_a_damaged_file_and_revives_no_session(
    client: TestClient, settings: ServeSettings, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which sessions were ended before is unknown then, so all of them are."""
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    client.post("/session", json={"key": key}, headers=HERE)
    signed_out = client.cookies[COOKIE]
    client.delete("/session", headers=HERE)
    client.post("/session", json={"key": key}, headers=HERE)
    kept = client.cookies[COOKIE]
    (settings.data_dir / GENERATIONS).write_text(damaged)
    with caplog.at_level(logging.WARNING):
        assert [client.get("/prune-jobs").status_code for _ in range(3)] == [401] * 3
    assert sum(GENERATIONS in line for line in caplog.messages) == 1
    assert client.post("/session", json={"key": key}, headers=HERE).status_code == 200
    assert client.get("/prune-jobs").status_code == 200
    for cookie in (signed_out, kept):
        client.cookies.clear()
        client.cookies.set(COOKIE, cookie)
        assert client.get("/prune-jobs").status_code == 401


@pytest.mark.parametrize("has_signed_in", [False, True])
def test_a_full_disk_refuses_sessions_and_says_why(
    client: TestClient, settings: ServeSettings, has_signed_in: bool
) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    if has_signed_in:
        client.post("/session", json={"key": key}, headers=HERE)
    with full_disk():
        answer = (
            client.delete("/session", headers=HERE)
            if has_signed_in
            else client.post("/session", json={"key": key}, headers=HERE)
        )
        assert (answer.status_code, answer.json()["type"]) == (503, "sessions-not-kept")
        assert "File too large" in answer.json()["detail"]
        of_key = {"Authorization": f"Bearer {key}"}
        assert client.get("/prune-jobs", headers=of_key).status_code == 200
    assert client.get("/prune-jobs").status_code == (200 if has_signed_in else 401)


def test_a_session_ends_with_its_own_key_of_two_after_a_rotation(
    sessions: Sessions, keys: KeyFile, clock: Clock
) -> None:
    clock.now = time.time()
    old = sessions.cookie(began(sessions, keys, keys.create("a", [Scope.JOBS])))
    new = sessions.cookie(began(sessions, keys, keys.rotate("a", overlap_s=60)))
    for cookie in (old, new):
        assert sessions.find(cookie) is not None
    clock.now += 61
    assert sessions.find(old) is None
    assert sessions.find(new) is not None
