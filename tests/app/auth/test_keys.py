"""Keys in their file: what is kept of them, and who learns when of a change."""

import hmac
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.auth.keys import (
    NO_QUOTA,
    InvalidKeyFile,
    KeyFile,
    KeysUnchanged,
    Quota,
    Scope,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def test_a_key_is_found_and_what_is_kept_of_it_is_no_key(path: Path) -> None:
    keys = KeyFile(path)
    assert (keys.exists, keys.known(), keys.find("")) == (False, (), None)
    first = keys.create("first", [Scope.JOBS, Scope.GENERATE])
    second = keys.create("second", [Scope.ADMIN])
    assert first != second
    found = keys.find(first)
    assert found is not None
    assert (found.name, set(found.scopes)) == ("first", {Scope.GENERATE, Scope.JOBS})
    for wrong in ("", first[:-1], first + "x", first.upper(), found.sha256):
        assert keys.find(wrong) is None, wrong
    text = path.read_text()
    assert found.sha256 in text
    for key in (first, second):
        assert key.removeprefix("sleb_") not in text
        assert len(key) == 48


def test_a_key_has_limits_of_its_own_or_none(path: Path) -> None:
    KeyFile(path).create("own", [Scope.JOBS], rate_per_min=60, max_concurrent=0)
    KeyFile(path).create("usual", [Scope.JOBS])
    found = [(each.rate_per_min, each.max_concurrent) for each in KeyFile(path).known()]
    assert found == [(60, 0), (None, None)]


def test_the_file_is_for_its_owner_alone_and_nothing_is_left_beside_it(path: Path) -> None:
    keys = KeyFile(path)
    keys.create("a", [Scope.JOBS])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    path.chmod(0o644)
    keys.revoke("a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} <= {"keys.json", "keys.json.lock"}


def test_every_key_is_compared_and_none_in_a_time_that_tells(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyFile(path)
    first = keys.create("a", [Scope.JOBS])
    for name in "bcd":
        keys.create(name, [Scope.JOBS])
    compared: list[str] = []
    compare = hmac.compare_digest

    def noted(known: str, given: str) -> bool:
        compared.append(known)
        return compare(known, given)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    for key in (first, "none"):
        compared.clear()
        keys.find(key)
        assert compared == [known.sha256 for known in keys.known()]


def test_others_learn_of_a_change_at_once_and_read_the_file_only_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli, running = KeyFile(path), KeyFile(path)
    key = cli.create("a", [Scope.JOBS])
    assert running.find(key) is not None
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", None)
        assert running.find(key) is not None
    cli.revoke("a")
    assert running.find(key) is None
    assert running.exists
    again = cli.create("a", [Scope.JOBS])
    assert running.find(key) is None
    assert running.find(again) is not None


def test_names_are_plain_and_there_is_one_of_each(path: Path) -> None:
    keys = KeyFile(path)
    for name in ("", "a" * 65, "a b", "a\n", "../a", "é", "-a", 'a"'):
        with pytest.raises(KeysUnchanged, match="expected up to 64"):
            keys.create(name, [Scope.JOBS])
    keys.create("a", [Scope.JOBS])
    with pytest.raises(KeysUnchanged, match="revoke it first"):
        keys.create("a", [Scope.ADMIN])
    with pytest.raises(KeysUnchanged, match="existing keys: a"):
        keys.revoke("b")


def test_those_who_change_it_at_once_lose_nothing(path: Path) -> None:
    names = [f"key-{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: KeyFile(path).create(name, [Scope.JOBS]), names))
    assert all(KeyFile(path).find(key) for key in made)
    assert sorted(key.name for key in KeyFile(path).known()) == sorted(names)


ROW: dict[str, Any] = {"name": "a", "scopes": ["jobs"], "sha256": "0" * 64, "created_at": 1.0}
BROKEN: list[Any] = [
    [],
    {},
    {"format": 2, "keys": []},
    {"format": 1, "keys": [{}]},
    {"format": 1, "keys": [{**ROW, "scopes": ["root"]}]},
    {"format": 1, "keys": [{**ROW, "sha256": ""}]},
    {"format": 1, "keys": [{**ROW, "name": "a b"}]},
    {"format": 1, "keys": [{**ROW, "rate_per_min": -1}]},
    {"format": 1, "keys": [{**ROW, "rate_per_min": 0.5}]},
    {"format": 1, "keys": [{**ROW, "max_concurrent": True}]},
    {"format": 1, "keys": [{**ROW, "max_concurrent": "1"}]},
    {"format": 1, "keys": [], "quotas": []},
    {"format": 1, "keys": [], "quotas": {"a": 1}},
    {"format": 1, "keys": [], "quotas": {"a b": {}}},
    {"format": 1, "keys": [], "quotas": {"a": {"queued_jobs": -1}}},
]


@pytest.mark.parametrize("text", ["", "{", *map(json.dumps, BROKEN)])
def test_a_file_that_is_not_ours_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 1, "keys": [ROW]}))
    assert [key.name for key in KeyFile(path).known()] == ["a"]
    path.write_text(text)
    with pytest.raises(InvalidKeyFile, match="create new keys"):
        KeyFile(path).find("")


def test_a_rotated_key_is_accepted_beside_the_new_one_until_it_ends(path: Path) -> None:
    keys, now_s = KeyFile(path), time.time()
    first = keys.create("a", [Scope.JOBS], rate_per_min=7, tenant="team")
    second = keys.rotate("a", overlap_s=3600)
    old, new = keys.find(first), keys.find(second)
    assert old is not None
    assert new is not None
    assert (new.scopes, new.rate_per_min, new.owner) == (old.scopes, 7, "team")
    assert old.expires_at == pytest.approx(now_s + 3600, abs=60)
    assert new.expires_at is None
    third = keys.rotate("a", overlap_s=0)
    assert [each.name for each in keys.known()] == ["a"]
    assert (keys.find(first), keys.find(second)) == (None, None)
    assert keys.find(third) is not None
    keys.revoke("a")
    assert keys.find(third) is None


def test_a_rotation_moves_no_end_date(path: Path) -> None:
    keys, now_s = KeyFile(path), time.time()
    first = keys.create("a", [Scope.JOBS], expires_at=now_s + 60)
    second = keys.rotate("a", overlap_s=3600)
    ends = [found.expires_at for key in (first, second) if (found := keys.find(key))]
    assert ends == [now_s + 60, now_s + 60]
    keys.create("over", [Scope.JOBS], expires_at=now_s - 1)
    with pytest.raises(KeysUnchanged, match="revoke it"):
        keys.rotate("over", overlap_s=60)
    with pytest.raises(KeysUnchanged, match="existing keys: a, over"):
        keys.rotate("other", overlap_s=60)


def test_a_key_of_an_earlier_version_is_its_own_tenant(path: Path) -> None:
    keys = KeyFile(path)
    key = keys.create("a", [Scope.JOBS])
    data = json.loads(path.read_text())
    for row in data["keys"]:
        del row["tenant"], row["expires_at"]
    path.write_text(json.dumps(data))
    found = KeyFile(path).find(key)
    assert found is not None
    assert (found.owner, found.expires_at, found.is_admin) == ("a", None, False)
    with pytest.raises(KeysUnchanged, match="expected up to 64"):
        keys.create("b", [Scope.JOBS], tenant="no name")


def test_the_quota_of_a_tenant_is_that_of_its_keys_and_stays_when_they_change(path: Path) -> None:
    keys = KeyFile(path)
    with pytest.raises(KeysUnchanged, match="sleb keys create"):
        keys.change_quota("team", Quota(queued_jobs=1))
    assert not keys.exists  # the file would lock out all clients
    keys.create("a", [Scope.JOBS], tenant="team")
    keys.create("b", [Scope.JOBS])
    keys.change_quota("team", Quota(queued_jobs=5, running_jobs=0))
    assert keys.change_quota("team", Quota(running_jobs=2)) == Quota(5, 2)
    keys.change_quota("b", Quota(checkpoint_bytes=10))
    other = KeyFile(path)
    assert [each.quota for each in other.known()] == [Quota(5, 2), Quota(checkpoint_bytes=10)]
    keys.rotate("a", overlap_s=60)
    keys.revoke("b")
    assert [each.quota for each in other.known()] == [Quota(5, 2)] * 2
    assert other.quotas() == {"team": Quota(5, 2), "b": Quota(checkpoint_bytes=10)}
    assert keys.change_quota("team", Quota(running_jobs=1), is_reset=True) == Quota(None, 1)
    keys.change_quota("team", NO_QUOTA, is_reset=True)
    assert list(other.quotas()) == ["b"]
    with pytest.raises(KeysUnchanged, match="expected up to 64"):
        keys.change_quota("no name", Quota(1))


def test_a_quota_is_over_the_defaults() -> None:
    defaults = Quota(queued_jobs=5, running_jobs=2)
    assert Quota(queued_jobs=0, checkpoint_bytes=7).over(defaults) == Quota(0, 2, 7)
