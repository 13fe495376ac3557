"""The secrets that compose creates, with a real Valkey and its command from the compose file."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis import exceptions as redis_errors

from pruning.config import WorkerSettings
from pruning.jobs.redis import connect
from pruning.jobs.store import JobStore
from tests.image.compose import ROOT, services, valkey_options, volumes
from tests.support.valkey_server import ValkeyServer, running_valkey

MAKE = ROOT / "docker" / "secrets" / "make.sh"


def make(folder: Path) -> None:
    subprocess.run(["sh", str(MAKE), str(folder)], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sleb", "valkey", "grafana"):
        (tmp_path / name).mkdir()
    make(tmp_path)
    return tmp_path


@pytest.fixture
def password(folder: Path) -> str:
    url = (folder / "sleb" / "sleb_redis_url").read_text().strip()
    assert url.startswith("redis://sleb:")
    assert url.endswith("@valkey:6379")
    return url.removeprefix("redis://sleb:").removesuffix("@valkey:6379")


@pytest.fixture
def server(folder: Path) -> Iterator[ValkeyServer]:
    """Valkey as compose starts it, but on a Unix socket."""
    with running_valkey(*valkey_options(folder / "valkey" / "users.acl")) as server:
        yield server


@pytest.fixture
def socket(server: ValkeyServer) -> str:
    return server.url.removeprefix("unix://")


def test_only_the_application_logs_in_and_by_the_file(
    folder: Path, password: str, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sleb" / "sleb_redis_url").write_text(f"unix://sleb:{password}@{socket}")
    monkeypatch.setenv("SLEB_SECRETS_DIR", str(folder / "sleb"))
    monkeypatch.delenv("SLEB_REDIS_URL", raising=False)
    url = WorkerSettings().redis_url
    assert url is not None
    with connect(url) as client:
        assert JobStore(client).counts() is not None
        client.set("a", "b")
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    with redis.Redis(unix_socket_path=socket, username="health", password="any") as health:
        assert health.ping()
        for forbidden in (health.dbsize, health.info, lambda: health.get("a")):
            with pytest.raises(redis_errors.NoPermissionError):
                forbidden()
    for name, guess in ((None, None), ("default", "x"), ("sleb", "x")):
        guesser = redis.Redis(unix_socket_path=socket, username=name, password=guess)
        with guesser, pytest.raises(redis.AuthenticationError):
            guesser.ping()


def test_transactions_are_there_when_the_server_is_started_again(
    password: str, server: ValkeyServer, socket: str
) -> None:
    with redis.Redis(unix_socket_path=socket, username="sleb", password=password) as client:
        client.pipeline(transaction=True).set("a", "b").set("c", "d").execute()
        # Valkey 8.1 replays its file as this user, and skips transactions without all rights
        assert client.acl_getuser("default")["categories"] == ["+@all"]
        server.process.terminate()
        server.process.wait(30)
        with server.start():
            server.wait_until_it_answers()
            assert client.mget("a", "c") == [b"b", b"d"]
            server.process.terminate()


def test_valkey_is_told_the_hash_alone(folder: Path, password: str) -> None:
    assert password not in (folder / "valkey" / "users.acl").read_text()
    assert len(password) == 64
    assert len((folder / "grafana" / "admin_password").read_text()) == 64


def test_they_are_made_once_and_for_every_installation_anew(folder: Path) -> None:
    def found(of: Path) -> dict[str, str]:
        return {str(file.relative_to(of)): file.read_text() for file in of.glob("*/*")}

    before = found(folder)
    make(folder)
    assert found(folder) == before
    (folder / "grafana" / "admin_password").unlink()
    (folder / "sleb" / "sleb_redis_url").unlink()
    make(folder)
    changed = {name for name, text in found(folder).items() if text != before[name]}
    assert changed == before.keys()


def test_every_reader_finds_its_files_and_may_read_them(folder: Path) -> None:
    found = services()
    for volume, mount in volumes(found["secrets"]).items():
        name = Path(mount["target"]).name
        assert mount["target"] == f"/secrets/{name}"
        [reader] = {service for service in found if volume in volumes(found[service])} & {
            "valkey",
            "grafana",
            "api",
        }
        assert volumes(found[reader])[volume]["target"] == "/run/secrets"
        for file in (folder / name).iterdir():
            assert file.stat().st_mode & 0o777 == 0o444
    environment = found["grafana"]["environment"]
    password = Path(environment["GF_SECURITY_ADMIN_PASSWORD__FILE"])
    assert (password.parent, (folder / "grafana" / password.name).exists()) == (
        Path("/run/secrets"),
        True,
    )
    assert "/run/secrets/users.acl" in found["valkey"]["command"]
