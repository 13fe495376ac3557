"""``sleb demo``: prune a real model, serve it beside the dense one, and compare the two.

The whole service runs in the background, in a data directory of its own. The demo uses it over
HTTP, as a client would.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.markup import escape

from app.commands.client import Refused, ServiceClient, ServiceUnavailable
from app.commands.demo_report import ModelFigures, figures_of, print_report
from app.commands.jobs import watch
from app.config import ServeSettings
from app.models.demo_bar import demo_model_with_bar
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import MeasuredSpeedups
from app.terminal import print_next, starting
from pruning.checkpoints.staging import staged
from pruning.config import child_environment
from pruning.jobs.job import JobStatus
from pruning.models.demo_model import NAME
from pruning.models.names import int8_name
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore, set_up_torch
from pruning.plural import counted
from pruning.process import deferred_signal

CALIBRATION = {"num_samples": 8, "seqlen": 64}
EVALUATION = {"margin": 0.07, "seqlen": 64}
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The three primary colours are",
    "Once upon a time, in a small village by the sea,",
)
MAX_NEW_TOKENS = 32
REPEATS = 5  # odd, so that a median is one of the times; the advice needs intervals
INT8 = int8_name(NAME)
INT8_EVALUATION = {"num_windows": 24, "seqlen": 64}  # of each packaged text
MAX_WAITS = 3  # for the kernels of a comparison
TIMEOUT_S = 300.0  # of a request; a comparison takes the longest
START_TIMEOUT_S = 120.0  # until the service is ready
STOP_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 20.0  # a few evaluations
POLL_S = 0.2


class DemoFailed(RuntimeError):
    """A step of the demo has failed."""


def run_demo(
    settings: ServeSettings,
    num_remove: int,
    *,
    keep: bool,
    as_json: bool,
    evaluate_s: float,
    measure_s: float,
) -> None:
    """Fetch the model, start the service, prune, compare, report, and stop the service.

    The evaluation ends after ``evaluate_s`` if not every interval is narrow by then, and each
    measurement of the speeds of the depths to be shown after ``measure_s``.
    """
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    place = own_place(settings)
    with (
        _service(place, console, keep=keep) as service,
        closing(ServiceClient(service.url)) as client,
    ):
        with starting():  # beside the service, which takes as long
            set_up_torch()
        path = demo_model_with_bar(settings.models_dir, console)
        console.print(f"[green]✓[/] {NAME} in {path}", soft_wrap=True)
        service.wait_until_ready(console)
        _compile_kernels(client)  # half a minute once, beside the job
        job = _prune(client, console, num_remove, evaluate_s)
        keep_result(job["pruned_model"], place.checkpoints_dir, settings.checkpoints_dir)
        names = [NAME, INT8, deepest_of(job)]
        with console.status("Generating with the dense, the int8 and the pruned model in turn"):
            comparison = _compared(client, names, measure_s)
        with console.status("Measuring the perplexity of int8 weights"):
            _evaluate_int8(client)
        keep_measured(place, settings)
        advice = client.request("GET", f"/models/{NAME}/advice")
        figures = _figures(client, comparison)
        print_report(job, advice, figures, PROMPTS[0], as_json=as_json)
        _print_answer(console, advice)
        _print_next_steps(console, service.url, job, is_running=keep)


def own_place(settings: ServeSettings) -> ServeSettings:
    """The settings of the demo's service: it shares the model, but no jobs, names and keys."""
    directory = settings.data_dir / "demo"
    (directory / "models").mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (directory / "models" / NAME).symlink_to(Path("..", "..", "models", NAME))
    own = {"data_dir": directory, "redis_url": None, "secrets_dir": None, "preload": None}
    own |= {"tls_cert": None, "tls_key": None, "tls_client_ca": None}
    is_local = {"host": IPv4Address("127.0.0.1"), "port": _free_port(settings.port)}
    return settings.model_copy(update={**own, **is_local})


def keep_result(name: str, source: Path, target: Path) -> None:
    """Let the service of the ordinary data directory serve the checkpoint of the demo as well.

    Not if it has one of the model already, whose names ``@-k`` would change. Files are linked, so
    they take no room twice and stay if the demo's directory goes.
    """
    if any(target.glob(f"{NAME}@*")):
        return
    with staged(target / name) as folder:
        shutil.copytree(source / name, folder / name, copy_function=os.link)
        (folder / name).rename(target / name)


def deepest_of(job: dict[str, Any]) -> str:
    """All removals, by a name that no other job can take over."""
    return f"{job['pruned_model']}-{len(job['removed_blocks'])}"


def keep_measured(source: ServeSettings, target: ServeSettings) -> None:
    """Let the ordinary data directory know what the demo's service has measured."""
    MeasuredSpeedups(target.data_dir).record(NAME, MeasuredSpeedups(source.data_dir).of_model(NAME))
    weights = fingerprint(ModelStore(target.models_dir).path(NAME))
    qualities = MeasuredQualities(source.data_dir).of_model(NAME, weights)
    MeasuredQualities(target.data_dir).record(NAME, weights, qualities)


@dataclass(frozen=True)
class _Service:
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_until_ready(self, console: Console) -> None:
        """Raises ``DemoFailed``."""
        with console.status("Starting Valkey, a worker and the API"):
            _wait_until_ready(self.url, self.process, self.log)
        console.print(f"[green]✓[/] service ready on {self.url}")


@contextmanager
def _service(settings: ServeSettings, console: Console, *, keep: bool) -> Iterator[_Service]:
    """Run ``sleb up`` in the background, with its output in a file. It may not be ready yet."""
    log = settings.data_dir / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "up"],
            env=child_environment(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    is_done = False
    try:
        yield _Service(f"http://127.0.0.1:{settings.port}", process, log)
        is_done = True
    finally:
        if keep and is_done:
            console.print(f"The service is still running; stop it with [bold]kill {process.pid}[/]")
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
    raise DemoFailed(f"the service did not start; the last lines of {log}:\n{tail}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then ends its children
        process.wait()


def _prune(
    client: ServiceClient, console: Console, num_remove: int, evaluate_s: float
) -> dict[str, Any]:
    """Submit a job and show its progress. Returns the job after it has succeeded."""
    from pruning.models.products import fastest_dtype  # noqa: PLC0415 - torch

    dtype = fastest_dtype()
    body = {
        "model": NAME,
        "num_remove": num_remove,
        "calibration": CALIBRATION,
        "evaluation": {**EVALUATION, "max_seconds": evaluate_s},
        "dtype": dtype,
    }
    with deferred_signal(signal.SIGINT) as is_interrupted:  # a job without an id is not cancelled
        job = client.request("POST", "/prune-jobs", body=body)
    with _cancelled_on_error(client, console, job["id"]):
        if is_interrupted():
            raise KeyboardInterrupt
        wanted = counted(num_remove, "block")
        console.print(f"[green]✓[/] POST /prune-jobs: {job['id']}, removing {wanted} in {dtype}")
        watch(client, job["id"])
    job = client.get(job["id"])
    removed = ", ".join(map(str, job["removed_blocks"]))
    console.print(f"[green]✓[/] removed blocks {removed}")
    return job


@contextmanager
def _cancelled_on_error(client: ServiceClient, console: Console, job_id: str) -> Iterator[None]:
    """Cancel the job on Ctrl-C: otherwise the next demo would go on with it."""
    try:
        yield
    except BaseException:
        with console.status("Cancelling the job"), suppress(ServiceUnavailable, Refused):
            _cancel(client, job_id)
        raise


def _cancel(client: ServiceClient, job_id: str) -> None:
    """Cancel the job, and wait until its worker has stopped."""
    client.change(job_id, "cancel")
    pause = threading.Event()
    for _ in range(int(CANCEL_TIMEOUT_S / POLL_S)):
        if JobStatus(client.get(job_id)["status"]).is_final:
            return
        pause.wait(POLL_S)


def _figures(client: ServiceClient, comparison: dict[str, Any]) -> list[ModelFigures]:
    """Those of the compared models, with what is known of them by now."""
    reasons = {each["model"]: each["tpot"]["reason"] for each in comparison["results"]}
    return [
        figures_of(
            client.request("GET", f"/models/{name}"),
            [prompt["outputs"][number] for prompt in comparison["prompts"]],
            reasons.get(name),
        )
        for number, name in enumerate(comparison["models"])
    ]


def _compile_kernels(client: ServiceClient) -> None:
    for name in (NAME, INT8):
        first = {"model": name, "prompt": "a", "max_new_tokens": 1}
        client.request("POST", "/generate", body=first, timeout_s=TIMEOUT_S)


def _evaluate_int8(client: ServiceClient) -> None:
    """Measure the perplexity of int8 weights, which the service then knows."""
    body = {"model": INT8, **INT8_EVALUATION}
    client.request("POST", "/evals", body=body, timeout_s=TIMEOUT_S)


def _compared(client: ServiceClient, names: Sequence[str], measure_s: float) -> dict[str, Any]:
    """Generate answers of equal lengths with every model, so that only the depth differs."""
    body = {
        "models": names,
        "prompt": PROMPTS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "ignore_eos": True,
        "repeats": REPEATS,
        "max_seconds": measure_s,
    }
    for _ in range(MAX_WAITS):  # each for minutes, while a slow machine compiles kernels
        with suppress(ServiceUnavailable):
            return client.request("POST", "/compare", body=body, timeout_s=TIMEOUT_S)
    return client.request("POST", "/compare", body=body, timeout_s=TIMEOUT_S)


def _print_answer(console: Console, advice: dict[str, Any]) -> None:
    console.print(f"\n[bold]{escape(advice['sentence'])}[/]")
    if (step := advice["next_step"]) is not None:
        print_next(console, step["words"], step["command"])


def _print_next_steps(console: Console, url: str, job: dict[str, Any], *, is_running: bool) -> None:
    hint = "" if is_running else " (needs a running service: make demo KEEP=1)"
    name = deepest_of(job)
    console.print(
        f"\n[bold]Next steps[/]{hint}\n"
        f"  web page           {url}/ui\n"
        f"  what to take       sleb advise {NAME}\n"
        f"  serve it           make up, then open http://localhost:8000/ui\n"
        f"  API documentation  {url}/docs\n"
        f"  metrics            {url}/metrics\n"
        f"  job                curl {url}/prune-jobs/{job['id']}\n"
        f"  all variants       curl {url}/models\n"
        f"  completion         curl {url}/generate -H 'content-type: application/json' \\\n"
        f"""                       -d '{{"model": "{name}", "prompt": "The sea is"}}'""",
        soft_wrap=True,  # so that a line can be copied
    )
