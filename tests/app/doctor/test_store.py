"""The doctor's checks of Redis servers, suitable and unsuitable."""

import time
from pathlib import Path

import pytest
import redis

from app.doctor.finding import Level
from app.doctor.store import MAX_SKEW_S, clock, eviction, persistence, store
from pruning.config import Settings
from tests.support.processes import free_port
from tests.support.valkey_server import valkey


def levels(settings: Settings) -> dict[str, Level]:
    return {each.check: each.level for each in store(settings)}


def test_the_embedded_server_is_well(tmp_path: Path) -> None:
    names = ("job store", "persistence", "eviction", "clock")
    assert levels(Settings(data_dir=tmp_path)) == dict.fromkeys(names, Level.OK)


def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}"
    [found] = store(Settings(data_dir=tmp_path, redis_url=url))
    assert found.level is Level.WRONG
    assert "hunter2" not in found.said
    assert "SLEB_REDIS_URL" in found.advice


def test_an_embedded_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [found] = store(Settings(data_dir=tmp_path / "file"))
    assert (found.check, found.level) == ("job store", Level.WRONG)
    assert "valkey.log" in found.advice


@pytest.mark.parametrize("given", ["", "?password=hunter1"], ids=["none", "wrong"])
def test_a_server_that_wants_a_password_is_told(tmp_path: Path, given: str) -> None:
    with valkey("--requirepass", "hunter2") as url:
        [found] = store(Settings(data_dir=tmp_path, redis_url=url + given))
        assert found.level is Level.WRONG
        assert "rejected the login" in found.said
        assert "password" in found.advice
        assert "hunter1" not in found.said


@pytest.mark.parametrize(
    ("options", "level"),
    [
        (["--appendonly", "yes"], Level.OK),
        (["--appendonly", "no", "--save", "60 1"], Level.NOTE),
        (["--appendonly", "no", "--save", ""], Level.WRONG),
    ],
)
def test_a_server_that_forgets_is_told(options: list[str], level: Level) -> None:
    with valkey(*options) as url, redis.Redis.from_url(url) as client:
        assert persistence(client).level is level


def test_a_server_that_does_not_tell_its_configuration_is_a_note() -> None:
    with valkey("--save", "") as url, redis.Redis.from_url(url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-config"])
        assert persistence(client).level is Level.NOTE


@pytest.mark.parametrize(
    ("options", "level"),
    [
        (["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"], Level.WRONG),
        (["--maxmemory", "1gb"], Level.OK),
        (["--maxmemory-policy", "allkeys-lru"], Level.OK),
    ],
)
def test_a_server_that_drops_keys_is_told(options: list[str], level: Level) -> None:
    with valkey(*options) as url, redis.Redis.from_url(url) as client:
        assert eviction(client).level is level


@pytest.mark.parametrize(
    ("ahead_s", "level", "word"),
    [
        (0, Level.OK, "s "),
        (MAX_SKEW_S + 5, Level.WRONG, "ahead of"),
        (-MAX_SKEW_S - 5, Level.WRONG, "behind"),
    ],
)
def test_a_clock_that_is_off_is_told(
    redis_client: redis.Redis, ahead_s: float, level: Level, word: str
) -> None:
    found = clock(redis_client, time.time() + ahead_s)
    assert found.level is level
    assert word in found.said
