"""A worker whose children have simulated GPUs, as a process of its own.

Run as ``python -m tests.support.simcuda.worker REDIS_URL LEASE_S``. The data directory and the
device come from the environment. A child notes the bytes that each card held at its peak.
"""

import json
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from pruning.config import WorkerSettings
from pruning.jobs.queue import TASK, Task
from pruning.worker.entrypoints import run_child, run_worker
from pruning.worker.parent import PruneDelivery, PruneWorker
from pruning.worker.task import run_job


def run_on_cards(job_id: str) -> None:
    from tests.support.simcuda.device import NUM_DEVICES, simulated_cuda  # noqa: PLC0415 - torch

    with simulated_cuda() as cuda:
        run_job(job_id)
        peaks = [cuda.peak_bytes(index) for index in range(NUM_DEVICES)]
    (WorkerSettings().data_dir / "peaks.json").write_text(json.dumps(peaks))


class DeliveryToCards(PruneDelivery):
    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({TASK: run_on_cards})


class WorkerWithCards(PruneWorker):
    job_class = DeliveryToCards
    child = "from tests.support.simcuda.worker import run_child_with_cards as run; run()"


def run_child_with_cards() -> None:
    run_child(WorkerWithCards)


if __name__ == "__main__":
    run_worker(
        WorkerSettings(), sys.argv[1], lease_s=int(sys.argv[2]), worker_class=WorkerWithCards
    )
