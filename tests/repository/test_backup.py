"""The backup and restore commands of the guide, run while the store is being written."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis

from app.config import ServeSettings
from app.results.store import ResultKind, ResultStore
from app.server.valkey import embedded_valkey
from pruning.checkpoints.store import CheckpointStore, verify
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.job_lives import succeed
from tests.support.pages import ROOT, blocks
from tests.support.recorder import Recorder
from tests.support.redis_fixtures import disorder
from tests.support.waiting import wait_until

SPEC = PruneSpec(
    "tiny", num_remove=1, calibration=CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)
)
NUM_SEEN = 20  # jobs that were created before the backup, which has to contain them


# A copy so slow that the append-only file is rewritten meanwhile: it contains the new manifest,
# but none of the files in it.
SLOW_CP = """\
#!/bin/sh
case "$*" in
  *"/valkey/appendonlydir "*)
    if [ ! -e rewritten ]; then
      /bin/cp "$@" && {python} -c '{rewrite}' && touch rewritten
      exec /bin/cp "$SLEB_DATA_DIR"/valkey/appendonlydir/*.manifest backup/valkey/appendonlydir/
    fi ;;
esac
exec /bin/cp "$@"
"""
REWRITE = """
import redis
client = redis.Redis.from_url("{url}")
client.bgrewriteaof()
while client.info("persistence")["aof_rewrite_in_progress"]:
    pass
"""


def run(note: str, here: Path, data_dir: Path) -> None:
    """Run the block of the guide that has this note."""
    (code,) = (
        block.code
        for block in blocks(ROOT / "docs" / "guides" / "operate.md")
        if block.note == note
    )
    environment = {
        "SLEB_DATA_DIR": str(data_dir),
        "PATH": f"{here}:/usr/bin:/bin",
        "HOME": str(here),
    }
    command = ["bash", "-euo", "pipefail", "-c", code]
    subprocess.run(command, cwd=here, env=environment, check=True, timeout=60)


@contextmanager
def writing(url: str) -> Iterator[list[str]]:
    """Create jobs and rewrite the append-only file, both in a loop."""
    made: list[str] = []
    is_over = threading.Event()

    def write() -> None:
        with closing(JobStore(redis.Redis.from_url(url))) as store:
            while not is_over.is_set():
                job = store.create(SPEC)
                succeed(store, job.id)
                made.append(job.id)

    def rewrite() -> None:
        with redis.Redis.from_url(url) as client:
            while not is_over.wait(0.05):
                if not client.info("persistence")["aof_rewrite_in_progress"]:
                    client.bgrewriteaof()

    threads = [threading.Thread(target=target) for target in (write, rewrite)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def slow_cp(here: Path, url: str) -> None:
    program = here / "cp"
    rewrite = REWRITE.format(url=url)
    program.write_text(SLOW_CP.format(python=sys.executable, rewrite=rewrite))
    program.chmod(0o700)


def test_a_log_that_is_rewritten_while_it_is_copied_is_copied_again(tmp_path: Path) -> None:
    here, data_dir = tmp_path / "reader", tmp_path / "data"
    here.mkdir()
    with embedded_valkey(data_dir) as url, redis.Redis.from_url(url) as client:
        job = JobStore(client).create(SPEC)
        slow_cp(here, url)
        run("backup", here, data_dir)
    assert (here / "rewritten").exists()
    run("restore", here, data_dir)
    with embedded_valkey(here / "restored") as url, redis.Redis.from_url(url) as client:
        assert JobStore(client).get(job.id) == job


def test_a_backup_has_results_aliases_keys_and_sessions(tmp_path: Path) -> None:
    """Without the secret of the sessions, everybody has to sign in again."""
    here, data_dir = tmp_path / "reader", tmp_path / "data"
    here.mkdir()
    with embedded_valkey(data_dir):
        settings = ServeSettings(data_dir=data_dir)
        files = [settings.keys_file, settings.sessions_file, data_dir / "aliases.json"]
        for file in files:
            file.write_text(file.name)
        kept = ResultStore(data_dir).keep(ResultKind.BENCH, "tiny", "faster", {})
        run("backup", here, data_dir)
    run("restore", here, data_dir)
    for file in files:
        assert (here / "restored" / file.name).read_text() == file.name
    assert ResultStore(here / "restored").get(kept).model == "tiny"


@pytest.fixture
def data_dir(tiny_models_dir: Path) -> Path:
    return tiny_models_dir.parent


def test_a_backup_of_a_running_service_has_its_jobs_and_checkpoints(
    data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = tmp_path_factory.mktemp("reader")
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    with embedded_valkey(data_dir) as url, redis.Redis.from_url(url) as client:
        first, waiting = JobStore(client).create(SPEC), JobStore(client).create(SPEC)
        PruneQueue(client).enqueue(waiting.id)
        target = checkpoints.path(first.checkpoint_name)
        models = ModelStore(data_dir / "models")
        prune(SPEC, name=first.checkpoint_name, target=target, models=models, observer=Recorder())
        succeed(JobStore(client), first.id)
        with writing(url) as made:
            wait_until(lambda: len(made) >= NUM_SEEN, "some jobs")
            client.waitaof(1, 0, 10_000)
            surely = {first.id, *made[:NUM_SEEN]}
            run("backup", here, data_dir)
    run("restore", here, data_dir)
    restored = here / "restored"
    with embedded_valkey(restored) as url, redis.Redis.from_url(url) as client:
        store = JobStore(client)
        assert surely <= set(store.ids(JobStatus.SUCCEEDED))
        assert store.get(waiting.id).status is JobStatus.QUEUED
        assert PruneQueue(client).rq.job_ids == [waiting.id]
        assert [event.data for event in store.events(first.id, limit=100)]
        assert disorder(client) == []
    assert CheckpointStore(restored / "checkpoints").names() == [first.checkpoint_name]
    assert verify(restored / "checkpoints" / first.checkpoint_name).removed_blocks
    assert ModelStore(restored / "models").names() == ["tiny"]
