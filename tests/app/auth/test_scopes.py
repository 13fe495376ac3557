"""Which paths ask for which keys, and which need none."""

import time
from pathlib import Path

import pytest

from app.auth.keys import InvalidKeyFile, KeyFile, KeyRefused, Scope, ScopeMissing
from app.auth.scopes import (
    Authorizer,
    UnprotectedAddress,
    authorizer_of,
    check_address,
    generates,
    scopes_for,
)
from app.main import create_app
from app.server.serve import run_api
from app.server.up import run_up
from tests.support.auth import ELSEWHERE, bearer, settings_of

ADMIN, GENERATE, JOBS = Scope.ADMIN, Scope.GENERATE, Scope.JOBS


@pytest.mark.parametrize("host", ELSEWHERE)
def test_without_a_key_nothing_listens_beyond_this_machine(tmp_path: Path, host: str) -> None:
    settings = settings_of(tmp_path, host=host)
    for start in (check_address, run_api, run_up):
        with pytest.raises(UnprotectedAddress, match="sleb keys create"):
            start(settings)
    assert list(tmp_path.iterdir()) == []
    check_address(settings_of(tmp_path, host=host, insecure=True))
    keys = KeyFile(settings.keys_file)
    keys.create("a", [JOBS])
    check_address(settings)
    keys.revoke("a")
    with pytest.raises(UnprotectedAddress):
        check_address(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(tmp_path: Path, host: str) -> None:
    settings = settings_of(tmp_path, host=host)
    check_address(settings)
    assert not authorizer_of(settings).requires_key


def test_a_file_that_is_lost_opens_nothing_beyond_this_machine(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, host=ELSEWHERE[0])
    keys = KeyFile(settings.keys_file)
    key = keys.create("a", [ADMIN])
    access = authorizer_of(settings)
    assert access.authorize("GET", "/models", bearer(key)) is not None
    settings.keys_file.unlink()
    for headers in ([], bearer(key)):
        with pytest.raises(KeyRefused):
            access.authorize("GET", "/models", headers)


@pytest.mark.parametrize("given", [{}, {"host": ELSEWHERE[0], "insecure": True}])
def test_once_there_was_a_key_it_is_asked_for(tmp_path: Path, given: dict[str, object]) -> None:
    settings = settings_of(tmp_path, **given)
    access = authorizer_of(settings)
    assert access.authorize("GET", "/models", []) is None
    keys = KeyFile(settings.keys_file)
    keys.create("a", [ADMIN])
    keys.revoke("a")
    with pytest.raises(KeyRefused):
        access.authorize("GET", "/models", [])


def test_a_file_that_cannot_be_read_admits_no_request(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    key = KeyFile(settings.keys_file).create("a", [ADMIN])
    access = authorizer_of(settings)
    settings.keys_file.write_text("{")
    with pytest.raises(KeyRefused):
        access.authorize("GET", "/models", bearer(key))
    with pytest.raises(InvalidKeyFile):
        check_address(settings)


def test_a_file_without_permission_admits_no_request(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings.keys_file.symlink_to(settings.keys_file)  # a loop: there is something, to no avail
    with pytest.raises(KeyRefused):
        authorizer_of(settings).authorize("GET", "/models", [])


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/health/live", None),
        ("GET", "/health/ready", None),
        ("GET", "/health/generate", None),
        ("GET", "/version", None),
        ("GET", "/metrics", None),
        ("POST", "/generate", {GENERATE}),
        ("POST", "/compare", {GENERATE}),
        ("POST", "/evals", {GENERATE}),
        ("GET", "/v1/models", {GENERATE}),
        ("POST", "/v1/chat/completions", {GENERATE}),
        ("GET", "/prune-jobs", {JOBS}),
        ("DELETE", "/prune-jobs/prn-1", {JOBS}),
        ("GET", "/models", {GENERATE, JOBS}),
        ("GET", "/models/tiny", {GENERATE, JOBS}),
        ("POST", "/models/tiny/load", set()),
        ("POST", "/models/tiny/unload", set()),
        ("GET", "/healthy", set()),
        ("GET", "/health/live/", set()),
        ("GET", "/metrics/../models", set()),
        ("GET", "/generated", set()),
        ("GET", "/V1/models", set()),
        ("GET", "/", None),
        ("GET", "/ui", None),
        ("GET", "/ui/jobs/prn-1", None),
        ("POST", "/session", None),
        ("GET", "/status", {GENERATE, JOBS}),
        ("GET", "/uix", set()),
        ("GET", "//models", set()),
        ("GET", "", set()),
    ],
)
def test_a_path_asks_for_its_scope_and_an_unknown_one_for_all(
    method: str, path: str, scopes: set[Scope] | None
) -> None:
    assert scopes_for(method, path) == (None if scopes is None else {ADMIN, *scopes})


def test_every_route_but_these_asks_for_a_key(tmp_path: Path) -> None:
    paths = create_app(settings_of(tmp_path), redis_url="unix:///none").openapi()["paths"]
    of_anybody = {
        path
        for path, operations in paths.items()
        for method in operations
        if scopes_for(method.upper(), path) is None
    }
    assert of_anybody == {f"/health/{kind}" for kind in ("live", "ready", "generate")} | {
        "/health",
        "/ping",
        "/session",
        "/version",
        "/metrics",
    }


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_a_header_has_one_bearer_key_of_some_length(keys: KeyFile) -> None:
    key = keys.create("a", [JOBS])
    access = Authorizer(keys, is_required=True)

    def who(*values: str | bytes) -> str | None:
        sent = [(b"authorization", v if isinstance(v, bytes) else v.encode()) for v in values]
        try:
            found = access.authorize("GET", "/prune-jobs", sent)
        except KeyRefused:
            return None
        return found.name if found else None

    assert who(f"Bearer {key}") == who(f"bearer  {key} ") == who(f"BEARER {key}") == "a"
    assert who(f"Bearer{' ' * 500}{key}") is None
    wrong: list[str | bytes] = [
        "",
        "Bearer",
        "Bearer ",
        key,
        f"Basic {key}",
        f"Token {key}",
        b"Bearer \xff\xfe",
    ]
    assert [who(value) for value in wrong] == [None] * len(wrong)
    assert who(f"Bearer {key}", f"Bearer {key}") is who() is None


def test_what_is_too_long_is_not_even_hashed(
    keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create("a", [JOBS])
    monkeypatch.setattr("app.auth.keys._digest", None)
    with pytest.raises(KeyRefused, match="too long"):
        Authorizer(keys, is_required=True).authorize("GET", "/prune-jobs", bearer("x" * 1_000_000))


def test_a_refusal_tells_what_is_missing_and_repeats_no_key(keys: KeyFile) -> None:
    key = keys.create("a", [JOBS])
    access = Authorizer(keys, is_required=True)
    with pytest.raises(ScopeMissing) as missing:
        access.authorize("POST", "/generate", bearer(key))
    assert "'a'" in str(missing.value)
    assert missing.value.challenge == 'Bearer error="insufficient_scope", scope="generate"'
    with pytest.raises(ScopeMissing, match="the scope admin"):
        access.authorize("POST", "/models/tiny/load", bearer(key))
    with pytest.raises(KeyRefused) as refused:
        access.authorize("POST", "/generate", bearer(key + "x"))
    assert key not in str(refused.value) + str(missing.value)
    assert refused.value.challenge == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    ("method", "path", "is_work"),
    [
        ("POST", "/generate", True),
        ("POST", "/compare", True),
        ("POST", "/v1/completions", True),
        ("GET", "/v1/models", False),
        ("POST", "/prune-jobs", False),
        ("GET", "/prune-jobs/prn-1/events", False),
        ("POST", "/models/tiny/load", False),
        ("GET", "/health/live", False),
    ],
)
def test_what_is_work_for_the_engine(method: str, path: str, is_work: bool) -> None:
    assert generates(method, path) == is_work


def test_a_key_that_has_ended_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    keys, now_s = KeyFile(settings.keys_file), time.time()
    access = authorizer_of(settings)
    ended = keys.create("ended", [ADMIN], expires_at=now_s - 1)
    with pytest.raises(KeyRefused, match="'ended' has expired"):
        access.authorize("GET", "/models", bearer(ended))
    current = keys.create("current", [ADMIN], expires_at=now_s + 3600)
    assert access.authorize("GET", "/models", bearer(current)) is not None
