"""``sleb demo``: the whole service on a real model, driven over HTTP as a user would.

What the demo prints at its end: one table, one completion from each side, where to go next.
"""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from app.commands.client import authorization
from app.commands.comparison import PROMPTS, Side, measure
from app.commands.prune import search_progress
from app.config import ServeSettings
from app.terminal import print_json
from pruning.config import child_environment
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.names import VariantName
from pruning.models.store import set_up_torch


def print_report(job: dict[str, Any], dense: Side, pruned: Side, *, as_json: bool) -> None:
    measured = dense.tpot_s / pruned.tpot_s
    ideal = dense.model["num_blocks"] / pruned.model["num_blocks"]
    if as_json:
        speedup = {"measured": measured, "ideal": ideal}
        sides = {"dense": asdict(dense), "pruned": asdict(pruned)}
        print_json({"job": job, **sides, "speedup": speedup})
        return
    table = Table(title="What pruning bought, and what it cost")
    for heading in ("", "dense", "pruned", "gain"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, left, right, ratio in _rows(dense, pruned):
        table.add_row(name, left, right, ratio)
    table.add_section()
    table.add_row("speed-up, measured", "", "", f"[bold]{measured:.2f}×[/]")
    table.add_row("speed-up, ideal (blocks)", "", "", f"{ideal:.2f}×")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"perplexity: {pruned.model['evaluated_on']}; times: medians over requests of "
        f"{len(PROMPTS)} prompts, dense and pruned in turn"
    )
    for title, side in (("dense", dense), ("pruned", pruned)):
        text = f"[dim]{PROMPTS[0]}[/]{_escaped(side.completion)}"
        console.print(Panel(text, title=f"{title}: {side.model['id']}", title_align="left"))


def _rows(dense: Side, pruned: Side) -> list[tuple[str, str, str, str]]:
    def row(name: str, left: float, right: float, form: str) -> tuple[str, str, str, str]:
        return name, form.format(left), form.format(right), f"{left / right:.2f}×"

    left, right = dense.model, pruned.model
    return [
        row("transformer blocks", left["num_blocks"], right["num_blocks"], "{:d}"),
        row("parameters", left["num_parameters"], right["num_parameters"], "{:,d}"),
        row("perplexity", left["perplexity"], right["perplexity"], "{:.2f}"),
        row("time to first token", dense.ttft_s * 1e3, pruned.ttft_s * 1e3, "{:.0f} ms"),
        row("time per output token", dense.tpot_s * 1e3, pruned.tpot_s * 1e3, "{:.1f} ms"),
        (
            "tokens per second",
            f"{dense.tokens_per_s:.1f}",
            f"{pruned.tokens_per_s:.1f}",
            f"{pruned.tokens_per_s / dense.tokens_per_s:.2f}×",  # the one where more is better
        ),
    ]


def print_next_steps(console: Console, url: str, job_id: str, *, is_running: bool) -> None:
    hint = "" if is_running else " (while it runs: make demo KEEP=1)"
    console.print(
        f"\n[bold]Where to go next[/]{hint}\n"
        f"  API documentation  {url}/docs\n"
        f"  metrics            {url}/metrics\n"
        f"  the job            curl {url}/prune-jobs/{job_id}\n"
        f"  all variants       curl {url}/models\n"
        f"  a completion       curl {url}/generate -H 'content-type: application/json' \\\n"
        f"""                       -d '{{"model": "smollm2-135m@-3", "prompt": "The sea is"}}'""",
        soft_wrap=True,  # so that a line can be copied
    )


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


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
            dense, pruned = measure(client, [NAME, str(VariantName(NAME, depth=num_remove))])
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
