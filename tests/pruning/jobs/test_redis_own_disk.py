"""A Valkey on a small disk of its own that gets full, while the data directory has room."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from app.config import ServeSettings
from app.server.valkey import server_binary
from pruning.jobs.store import JobStore
from tests.support.prune_requests import JOB
from tests.support.serving import local_api
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

DISK_BYTES = 2 * 2**20
# a file system in a name space of its own, so that no test needs to be root; the shell starts the
# server again, as the kernel frees the disk with the last process of the name space
ON_OWN_DISK = """
mount -t tmpfs -o size={size} tmpfs {disk} || exit 1
while true; do
  {server} --port 0 --dir {disk} --unixsocket {socket} \\
    --appendonly yes --appendfsync everysec --save '' > /dev/null
done
"""


@dataclass(frozen=True)
class SmallDisk:
    """A server, and the folder of its disk as this process sees it."""

    url: str
    folder: Path

    def fill(self) -> None:
        with suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4_096))

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def kill(self) -> None:
        """Another server is there when this returns."""
        with redis.Redis.from_url(self.url) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        wait_until(lambda: answers(self.url), "Valkey answers again")


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.dbsize() >= 0)  # a PING is refused while the disk is full
    except (redis.ConnectionError, redis.BusyLoadingError):
        return False


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    with TemporaryDirectory(prefix="sleb-valkey-") as directory:
        disk, socket = Path(directory) / "disk", Path(directory) / "s"
        disk.mkdir()
        script = ON_OWN_DISK.format(
            size=DISK_BYTES, disk=disk, socket=socket, server=server_binary()
        )
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
        with subprocess.Popen(command, start_new_session=True) as shell:
            url = f"unix://{socket}"
            try:
                wait_until(lambda: shell.poll() is not None or answers(url), "Valkey answers")
                assert shell.poll() is None, "user name spaces are not allowed here"
                yield SmallDisk(url, Path(f"/proc/{shell.pid}/root/{disk}"))
            finally:
                os.killpg(shell.pid, signal.SIGKILL)


class Submitting:
    """A client that repeats a refused job with the same key, so that it is there once."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self.accepted: list[str] = []

    def submit(self) -> Response:
        key = {"Idempotency-Key": f"job-{len(self.accepted)}"}
        answer = self._client.post("/prune-jobs", json=JOB, headers=key)
        if answer.status_code == 202:
            self.accepted.append(answer.json()["id"])
        return answer

    def submit_until_full(self) -> None:
        while (answer := self.submit()).status_code == 202:
            pass
        assert answer.status_code == 503, answer.text
        assert answer.json()["type"] == "job-store-unavailable"
        assert "free disk space" in answer.json()["detail"]

    def check(self) -> None:
        """Every accepted job is there, and no other but one that is still refused."""
        listed = {job["id"] for job in self._client.get("/prune-jobs?limit=100").json()["data"]}
        assert set(self.accepted) <= listed
        assert len(listed) <= len(self.accepted) + 1


def test_a_full_disk_of_valkey_alone_refuses_jobs_and_loses_none(
    small_disk: SmallDisk, tmp_path: Path, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir == tmp_path / "models"
    settings = ServeSettings(data_dir=tmp_path, drain_s=0, max_queued_jobs=1_000)
    with local_api(settings, small_disk.url) as client:
        submitting = Submitting(client)
        submitting.submit()
        for _ in range(2):
            small_disk.fill()
            submitting.submit_until_full()
            submitting.check()
            body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
            assert client.post("/generate", json=body).status_code == 200
            assert client.get("/health/ready").status_code == 200
            (tmp_path / "file").write_bytes(bytes(DISK_BYTES))  # this disk has room
            small_disk.free()
            wait_until(lambda: submitting.submit().status_code == 202, "jobs are taken again")
            wait_until(lambda: is_written(small_disk.url), "the file of the server has all")
            small_disk.kill()
            wait_until(lambda: submitting.submit().status_code == 202, "another server answers")
            submitting.check()
    with redis.Redis.from_url(small_disk.url) as store:
        ids = [job.id for job in JobStore(store).list(100).jobs]
        assert sorted(ids) == sorted(submitting.accepted)


def is_written(url: str) -> bool:
    """Whether a write now reaches the disk: with ``everysec``, one of the last second may not."""
    with redis.Redis.from_url(url) as client:
        client.set("sleb:filler", "x", px=1)
        return bool(client.waitaof(1, 0, 1_000)[0] == 1)
