"""What other processes on the same CPUs cost: time per token alone and beside neighbours.

The neighbours are a pruning job of the same ``sleb up``, and processes that multiply matrices with
as many threads as torch takes by default. Situations alternate on one service, and a second one has
half of the CPUs. The job is also timed alone, and beside the largest load.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx2
import numpy as np
import typer
from transformers import AutoTokenizer

from app.compare.speedup import alternate
from benchmarks.latencies import Pass
from benchmarks.load import closed_loop
from benchmarks.model import model_store
from benchmarks.reports import facts, table, write
from benchmarks.servers import Server, no_server_left, sleb_up
from benchmarks.workload import Prompts, SampleRequest
from pruning.models.demo_model import NAME

BUSY = """
import torch
matrix = torch.rand(1024, 1024)
print(flush=True)
while True:
    matrix @ matrix
"""
ALONE, JOB, HALF = "alone", "one job", "half of the CPUs"
_POLL_S = 0.2
_JOB_S = 20.0  # for which a job's evaluations are counted
_LIMIT_S = 200.0  # for the first of them

Workload = Mapping[int, Sequence[SampleRequest]]  # by the number of sequences at once
Situation = Callable[[Server], AbstractContextManager[object]]


class JobEnded(RuntimeError):
    """The pruning job did not last as long as the measurement."""


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, with a table beside it.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    sizes: Annotated[str, typer.Option(help="Numbers of sequences at once.")] = "1,8,32",
    neighbours: Annotated[str, typer.Option(help="Numbers of busy processes.")] = "2,4",
    prompt_len: int = 32,
    output_len: int = 32,
    repeats: int = 3,
    dtype: str = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="Of the service; by default its own.")] = None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = model_store(model).path(model)
    prompts = Prompts(AutoTokenizer.from_pretrained(path), seed=0)
    workload = {
        int(size): prompts.uniform(int(size), prompt_len, output_len) for size in sizes.split(",")
    }
    situations: dict[str, Situation] = {ALONE: lambda _: nullcontext(), JOB: job}
    for number in map(int, neighbours.split(",")):
        situations[f"{number} busy"] = partial(_busy_beside, number)
    half = sorted(os.sched_getaffinity(0))[: max(1, len(os.sched_getaffinity(0)) // 2)]
    with no_server_left():
        with sleb_up(path, dtype, threads) as server:
            passes = measured(server, situations, workload, repeats)
            rates = job_rates(server, workload[max(workload)])
        with sleb_up(path, dtype, threads, cpus=half) as server:
            passes |= measured(server, {HALF: lambda _: nullcontext()}, workload, repeats)
    report = {
        **facts("neighbours"),
        "lengths": [prompt_len, output_len],
        "ms_per_token": {name: _by_size(passes[ALONE], of) for name, of in passes.items()},
        "job_evaluations_per_s": rates,
    }
    write(report, out, markdown(report))


def measured(
    server: Server, situations: Mapping[str, Situation], workload: Workload, repeats: int
) -> dict[str, dict[int, list[Pass]]]:
    """Passes by situation and size, after a warm-up of each size."""
    for size, requests in workload.items():
        closed_loop(server, requests, size)
    passes: dict[str, dict[int, list[Pass]]] = {
        name: {size: [] for size in workload} for name in situations
    }
    for _, name in alternate(list(situations), repeats):
        with situations[name](server):
            for size, requests in workload.items():
                passes[name][size].append(closed_loop(server, requests, size))
    return passes


@contextmanager
def job(server: Server, num_samples: int = 16) -> Iterator[str]:
    """A pruning job that evaluates candidates, cancelled in the end. More samples take longer."""
    text = {"dataset": "prose", "num_samples": num_samples, "seqlen": 256}
    body = {"model": server.model, "sparsity": 0.5, "calibration": text, "repair": "none"}
    created = httpx2.post(f"{server.url}/prune-jobs", json=body)
    created.raise_for_status()
    url = f"{server.url}/prune-jobs/{created.json()['id']}"
    _wait_until(lambda: _num_done(url) > 0)
    try:
        yield url
    finally:
        httpx2.post(f"{url}/cancel").raise_for_status()
        _wait_until(lambda: httpx2.get(url).json()["status"] == "cancelled")


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that multiply matrices, with the threads that torch takes by default."""
    command = [sys.executable, "-c", BUSY]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - our own command
        for _ in range(number)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def job_rates(server: Server, requests: Sequence[SampleRequest]) -> dict[str, float]:
    """Evaluations per second of a job alone, and while these requests are served repeatedly."""
    with job(server) as url:
        alone = _rate(url)
        is_over = threading.Event()

        def load() -> None:
            while not is_over.is_set():
                closed_loop(server, requests, len(requests))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            beside = _rate(url)
        finally:
            is_over.set()
            thread.join()
    return {ALONE: alone, f"beside {len(requests)} sequences": beside}


def markdown(report: Mapping[str, Any]) -> str:
    """Tables of a report."""
    by_name = report["ms_per_token"]
    sizes = list(next(iter(by_name.values())))
    headings = ["", *(f"{size} at once" for size in sizes)]
    rows = []
    for name, found in by_name.items():
        cells = (
            f"{of['median']:.1f} ({of['times_alone']:.2f} ×), p99 {of['p99']:.0f}"
            for of in found.values()
        )
        rows.append([name, *cells])
    alone, beside = report["job_evaluations_per_s"].items()
    return (
        "# Neighbours\n\nMilliseconds per token of `sleb up`: median of the requests, in multiples "
        "of the time alone, and the 99th percentile of the times between tokens. Machine and "
        "command are in the JSON file of the same name.\n\n"
        + table(headings, rows)
        + f"\nThe job evaluates {alone[1]:.2f} candidates per second alone, and {beside[1]:.2f} "
        f"{beside[0]}: it takes {alone[1] / beside[1]:.2f} times as long.\n"
    )


def _busy_beside(number: int, _server: Server) -> AbstractContextManager[object]:
    return busy(number)


def _by_size(
    alone: Mapping[int, Sequence[Pass]], passes: Mapping[int, Sequence[Pass]]
) -> dict[str, dict[str, float]]:
    return {
        str(size): {
            "median": 1000 * _tpot_s(found),
            "p99": 1000 * float(np.percentile(_gaps_s(found), 99)),
            "times_alone": _tpot_s(found) / _tpot_s(alone[size]),
            "p99_times_alone": float(
                np.percentile(_gaps_s(found), 99) / np.percentile(_gaps_s(alone[size]), 99)
            ),
        }
        for size, found in passes.items()
    }


def _tpot_s(passes: Sequence[Pass]) -> float:
    """Median over passes of the mean time per token."""
    return median(median(timing.tpot_s or 0.0 for timing in one.timings) for one in passes)


def _gaps_s(passes: Sequence[Pass]) -> list[float]:
    return [gap for one in passes for timing in one.timings for gap in timing.gaps_s]


def _rate(url: str) -> float:
    began_s, before = time.perf_counter(), _num_done(url)
    pause = threading.Event()
    seconds, done = 0.0, 0
    while seconds < _JOB_S or (not done and seconds < _LIMIT_S):
        pause.wait(_POLL_S)
        seconds, done = time.perf_counter() - began_s, _num_done(url) - before
    if not done:
        raise JobEnded(f"{url} evaluated no candidate for {seconds:.0f} s: is it running?")
    return done / seconds


def _num_done(url: str) -> int:
    found = httpx2.get(url).json()
    if found["status"] not in ("queued", "running"):
        raise JobEnded(f"{url} is {found['status']}: ask for more samples")
    return int((found["progress"] or {}).get("evaluations_done") or 0)


def _wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(_POLL_S)


if __name__ == "__main__":
    typer.run(main)
