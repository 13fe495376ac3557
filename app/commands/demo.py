"""``sleb demo``: the whole service on a real model, driven over HTTP as a user would."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from app.commands.client import authorization
from app.commands.comparison import measure
from app.commands.demo_report import print_next_steps, print_report
from app.commands.prune import search_progress
from app.config import ServeSettings
from pruning.config import child_environment
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.store import set_up_torch

CALIBRATION = {"dataset": "self", "num_samples": 8, "seqlen": 64}
START_S = 120.0  # for the service to become ready
STOP_S = 60.0


class DemoFailed(RuntimeError):
    """A step of the demo did not come to its end."""


def run_demo(settings: ServeSettings, num_remove: int, *, keep: bool, as_json: bool) -> None:
    """Fetch the model, start everything, prune, generate, report, and stop what was started."""
    console = Console(stderr=True, highlight=False)
    set_up_torch()
    with console.status(f"Getting {NAME} ready: fetched and converted the first time only"):
        path = ensure_demo_model(settings.models_dir)
    console.print(f"[green]✓[/] {NAME} in {path}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    headers = authorization(settings.api_key)
    with (
        _service(settings, console, keep=keep) as url,
        httpx2.Client(base_url=url, headers=headers) as client,
    ):
        job = _prune(client, console, num_remove)
        with console.status("Generating with both, in turn"):
            dense, pruned = measure(client, [NAME, f"{NAME}@-{num_remove}"])
        print_report(job, dense, pruned, as_json=as_json)
        print_next_steps(console, url, job["id"], is_running=keep)


@contextmanager
def _service(settings: ServeSettings, console: Console, *, keep: bool) -> Iterator[str]:
    """``sleb up`` in the background, from ready to stopped; its output goes to a file."""
    port = _free_port(settings.port)
    url = f"http://127.0.0.1:{port}"
    log = settings.data_dir / "up.log"
    environment = child_environment(settings.model_copy(update={"port": port}))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "up"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    is_done = False
    try:
        with console.status("Starting Valkey, a worker and the API"):
            _wait_until_ready(url, process, log)
        console.print(f"[green]✓[/] service ready on {url}")
        yield url
        is_done = True
    finally:
        if keep and is_done:
            console.print(f"The service goes on; to stop it: [bold]kill {process.pid}[/]")
        else:
            with console.status("Stopping what was started"):
                _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then ends its children
        process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    pause = threading.Event()
    for _ in range(int(START_S / 0.2)):
        if process.poll() is not None:
            break
        try:
            if httpx2.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        pause.wait(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise DemoFailed(f"the service did not become ready; the end of {log}:\n{tail}")


def _prune(client: httpx2.Client, console: Console, num_remove: int) -> dict[str, Any]:
    """Submit the job and show its progress until it has succeeded."""
    body = {"model": NAME, "num_remove": num_remove, "calibration": CALIBRATION}
    response = client.post("/prune-jobs", json=body)
    if response.status_code != 202:
        raise DemoFailed(f"POST /prune-jobs answered {response.status_code}: {response.text}")
    job: dict[str, Any] = response.json()
    console.print(f"[green]✓[/] POST /prune-jobs: {job['id']}, {num_remove} blocks to remove")
    pause = threading.Event()
    with search_progress(console) as progress:
        task = progress.add_task("queued", total=None)
        while job["status"] in ("queued", "running"):
            pause.wait(0.5)
            job = client.get(job["urls"]["self"]).raise_for_status().json()
            counts = job["progress"]
            progress.update(
                task,
                description=job["phase"] or job["status"],
                completed=counts["evaluations_done"],
                total=counts["evaluations_total"] or None,
            )
    if job["status"] != "succeeded":
        raise DemoFailed(f"job {job['id']} {job['status']}: {job['error']}")
    removed = ", ".join(map(str, job["removed_blocks"]))
    console.print(f"[green]✓[/] removed blocks {removed}; published {job['pruned_model']}")
    return job


def _free_port(wanted: int) -> int:
    """The port of the settings if it is free, else any that is."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no free port on 127.0.0.1")
