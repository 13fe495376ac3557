"""Pages that a browser on this machine shows: without keys, none of elsewhere is answered."""

from pathlib import Path

import pytest

from app.auth.keys import KeyFile, Scope
from app.auth.scopes import NotLocal, authorizer_of
from tests.support.auth import ELSEWHERE, bearer, settings_of

HERE = ["localhost", "LOCALHOST", "a.localhost", "localhost.", "127.0.0.1", "127.9.9.9", "[::1]"]
ELSEWHERE_NAMES = [
    "",
    "rebound.example",
    "localhost.rebound.example",
    "notlocalhost",
    "127.0.0.1.rebound.example",
    "127.0.0.1@rebound.example",
    "192.0.2.1",
    "0.0.0.0",  # noqa: S104 - some systems take it for themselves
    "[::]",
    "[::1",
    "sleb",
    "\xff",
]


def names(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


@pytest.mark.parametrize("port", ["", ":8000"])
def test_without_keys_this_machine_alone_is_answered(tmp_path: Path, port: str) -> None:
    access = authorizer_of(settings_of(tmp_path))
    assert access.is_local
    assert access.authorize("GET", "/models", []) is None  # HTTP/1.0: no browser
    for name in HERE:
        local = names(host=name + port, origin=f"http://{name}{port}")
        assert access.authorize("POST", "/generate", local) is None, name
    for path in ("/generate", "/metrics", "/health/live", "/docs", "/nowhere"):
        for name in ELSEWHERE_NAMES:
            with pytest.raises(NotLocal, match="Host"):
                access.authorize("GET", path, names(host=name + port))
            foreign = names(host="localhost", origin=f"https://{name}{port}")
            with pytest.raises(NotLocal, match="Origin"):
                access.authorize("POST", path, foreign)
    with pytest.raises(NotLocal, match="Origin"):
        access.authorize("POST", "/generate", names(host="localhost", origin="null"))


@pytest.mark.parametrize(
    "given", [{"insecure": True}, {"host": ELSEWHERE[0], "insecure": True}, {"host": ELSEWHERE[0]}]
)
def test_a_service_that_allows_it_is_reached_by_any_name(
    tmp_path: Path, given: dict[str, object]
) -> None:
    access = authorizer_of(settings_of(tmp_path, **given))
    assert not access.is_local
    assert access.authorize("GET", "/health/live", names(host="any.example")) is None


def test_a_key_is_all_that_is_asked_for_once_there_is_one(tmp_path: Path) -> None:
    """No page of elsewhere has it."""
    settings = settings_of(tmp_path)
    key = KeyFile(settings.keys_file).create("a", [Scope.JOBS])
    access = authorizer_of(settings)
    found = access.authorize("GET", "/prune-jobs", [*bearer(key), *names(host="proxy.example")])
    assert found is not None
