"""``sleb demo``: prune a real model, serve it beside the dense one, and compare the two.

The whole service runs in the background and is used over HTTP, as a client would use it.
"""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx2
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from app.commands.client import authorization
from app.commands.prune import search_progress
from app.config import ServeSettings
from app.terminal import print_json
from pruning.config import child_environment
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.names import VariantName
from pruning.models.store import set_up_torch

CALIBRATION = {"num_samples": 8, "seqlen": 64}
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The three primary colours are",
    "Once upon a time, in a small village by the sea,",
)
MAX_NEW_TOKENS = 48
REPEATS = 3  # odd, so that a median is one of the times
TIMEOUT_S = 300.0  # of a request; a comparison takes the longest
START_TIMEOUT_S = 120.0  # until the service is ready
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2


class DemoFailed(RuntimeError):
    """A step of the demo has failed."""


@dataclass(frozen=True)
class ModelFigures:
    """The measurements of one model: medians over the repeats, and one completion."""

    model: dict[str, Any]  # as GET /models describes it
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    completion: str


def run_demo(settings: ServeSettings, num_remove: int, *, keep: bool, as_json: bool) -> None:
    """Fetch the model, start the service, prune, compare, report, and stop the service."""
    console = Console(stderr=True, highlight=False)
    set_up_torch()
    with console.status(f"Getting {NAME} ready: fetched and converted the first time only"):
        path = ensure_demo_model(settings.models_dir)
    console.print(f"[green]✓[/] {NAME} in {path}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    headers = authorization(settings.api_key)
    with (
        _service(settings, console, keep=keep) as url,
        httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client,
    ):
        job = _prune(client, console, num_remove)
        with console.status("Generating with both models, in turn"):
            dense, pruned = _compare(client, NAME, str(VariantName(NAME, depth=num_remove)))
        _print_report(job, dense, pruned, as_json=as_json)
        _print_next_steps(console, url, job["id"], is_running=keep)


@contextmanager
def _service(settings: ServeSettings, console: Console, *, keep: bool) -> Iterator[str]:
    """Run ``sleb up`` in the background, with its output in a file. Yields its URL once ready."""
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
            console.print(f"The service keeps running; stop it with [bold]kill {process.pid}[/]")
        else:
            with console.status("Stopping the service"):
                _stop(process)


def _free_port(preferred: int) -> int:
    """The preferred port if it is free, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no free port on 127.0.0.1")


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    pause = threading.Event()
    for _ in range(int(START_TIMEOUT_S / POLL_S)):
        if process.poll() is not None:
            break
        try:
            if httpx2.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        pause.wait(POLL_S)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise DemoFailed(f"the service did not become ready; the end of {log}:\n{tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then ends its children
        process.wait()


def _prune(client: httpx2.Client, console: Console, num_remove: int) -> dict[str, Any]:
    """Submit a job and show its progress. Returns the job after it has succeeded."""
    body = {"model": NAME, "num_remove": num_remove, "calibration": CALIBRATION}
    job = _post(client, "/prune-jobs", body, expected=202)
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


def _compare(client: httpx2.Client, *names: str) -> list[ModelFigures]:
    """Generate answers of equal lengths with every model, so that only the depth differs."""
    body = {
        "models": names,
        "prompt": PROMPTS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "ignore_eos": True,
        "repeats": REPEATS,
    }
    prompts = _post(client, "/compare", body, expected=200)["prompts"]
    return [
        _figures(
            client.get(f"/models/{name}").raise_for_status().json(),
            [prompt["outputs"][number] for prompt in prompts],
        )
        for number, name in enumerate(names)
    ]


def _figures(model: dict[str, Any], outputs: list[dict[str, Any]]) -> ModelFigures:
    """``outputs``: one for each prompt. The prompts of a repeat run as one batch."""
    repeats = list(zip(*(output["timings"] for output in outputs), strict=True))
    num_tokens = sum(output["completion_tokens"] for output in outputs)
    return ModelFigures(
        model=model,
        ttft_s=median(fmean(times["ttft_s"] for times in repeat) for repeat in repeats),
        tpot_s=median(fmean(times["tpot_s"] for times in repeat) for repeat in repeats),
        tokens_per_s=median(
            num_tokens / max(times["e2e_s"] for times in repeat) for repeat in repeats
        ),
        completion=outputs[0]["text"],
    )


def _post(
    client: httpx2.Client, path: str, body: dict[str, Any], *, expected: int
) -> dict[str, Any]:
    response = client.post(path, json=body)
    if response.status_code != expected:
        raise DemoFailed(f"POST {path} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _print_report(
    job: dict[str, Any], dense: ModelFigures, pruned: ModelFigures, *, as_json: bool
) -> None:
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
    for row in _rows(dense, pruned):
        table.add_row(*row)
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
        completion = side.completion.replace("[", "\\[")
        text = f"[dim]{PROMPTS[0]}[/]{completion}"
        console.print(Panel(text, title=f"{title}: {side.model['id']}", title_align="left"))


def _rows(dense: ModelFigures, pruned: ModelFigures) -> list[tuple[str, str, str, str]]:
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
            f"{pruned.tokens_per_s / dense.tokens_per_s:.2f}×",  # here more is better
        ),
    ]


def _print_next_steps(console: Console, url: str, job_id: str, *, is_running: bool) -> None:
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
