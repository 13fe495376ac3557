"""A worker as a process of its own, and tasks for it that a test can steer through files.

Run as ``python -m tests.support.worker_process REDIS_URL LEASE_S``. The data directory comes from
the environment.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import import_module
from types import FrameType, MappingProxyType
from typing import ClassVar

from rq import get_current_job

from pruning.config import WorkerSettings
from pruning.jobs.job import Job
from pruning.jobs.queue import TASK, Task
from pruning.jobs.redis import connect
from pruning.jobs.store import JobStore
from pruning.search.state import SearchPlan
from pruning.worker.entrypoints import run_child, run_worker
from pruning.worker.parent import PruneDelivery, PruneWorker
from pruning.worker.task import JobObserver, execute, run_job
from tests.support.deaths import set_death
from tests.support.job_lives import REMOVAL
from tests.support.quick import LIMITS

HOLD = "hold"
DIE = "die"
FINISH = "finish"
IGNORE = "ignore"
OVERFLOW = "overflow"


def hold(job_id: str) -> None:
    """Note the process id, then count evaluations until the file ``release`` is there."""
    data_dir = WorkerSettings().data_dir

    def run(_job: Job, observer: JobObserver) -> str:
        _note_process()
        observer.searching(SearchPlan("held", 1), 0, 1_000_000)
        done = 0
        while not (data_dir / "release").exists():
            done += 1
            observer.evaluated(done, 1_000_000)
            threading.Event().wait(0.02)
        return "held"

    _execute(job_id, run)


def finish(job_id: str) -> None:
    """Note the process id, then be in an evaluation that ends after SIGTERM has come."""

    def run(_job: Job, observer: JobObserver) -> str:
        asked, heed = threading.Event(), signal.getsignal(signal.SIGTERM)
        assert callable(heed)

        def note(signum: int, frame: FrameType | None) -> None:
            asked.set()
            heed(signum, frame)

        signal.signal(signal.SIGTERM, note)
        observer.searching(SearchPlan("held", 1), 0, 2)
        _note_process()
        asked.wait()
        observer.evaluated(1, 2)
        raise AssertionError

    _execute(job_id, run)


def ignore(job_id: str) -> None:
    """Note the process id behind a removal, then hear of nothing any more."""

    def run(_job: Job, observer: JobObserver) -> str:
        observer.removed(REMOVAL)
        _note_process()
        threading.Event().wait()
        raise AssertionError

    _execute(job_id, run)


def overflow(job_id: str) -> None:
    def run(_job: Job, _observer: JobObserver) -> str:
        raise MemoryError

    _execute(job_id, run)


def die(job_id: str) -> None:
    def run(_job: Job, _observer: JobObserver) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    _execute(job_id, run)


def prune(job_id: str) -> None:
    """The task of every worker, with as little to do as in the process of the tests."""
    for name, limit in LIMITS.items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, limit)
    run_job(job_id)


def _note_process() -> None:
    with (WorkerSettings().data_dir / "pids").open("a") as pids:
        print(os.getpid(), file=pids)


def _execute(job_id: str, run: Callable[[Job, JobObserver], str]) -> None:
    settings = WorkerSettings()
    assert settings.redis_url is not None
    delivery = get_current_job()
    assert delivery is not None
    assert delivery.worker_name is not None
    with closing(JobStore(connect(settings.redis_url, num_retries=0))) as store:
        execute(job_id, store, delivery.worker_name, run)


class SteeredDelivery(PruneDelivery):
    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType(
        {
            TASK: prune,
            HOLD: hold,
            DIE: die,
            FINISH: finish,
            IGNORE: ignore,
            OVERFLOW: overflow,
        }
    )


class SteeredWorker(PruneWorker):
    """A worker that knows these tasks as well."""

    job_class = SteeredDelivery
    child = "from tests.support.worker_process import run_child_with_tasks as run; run()"


def run_child_with_tasks() -> None:
    _name, job_id, *_ = sys.argv[1:]
    set_death(WorkerSettings().data_dir, job_id)
    run_child(SteeredWorker)


if __name__ == "__main__":
    run_worker(WorkerSettings(), sys.argv[1], lease_s=int(sys.argv[2]), worker_class=SteeredWorker)
