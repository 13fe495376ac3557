"""The noise floor: the dense model against itself by shadow traffic, /compare and bench.

Each instrument measures the time per token of both sides of its pairs. An instrument that is true
reads 1, idle and beside a pruning job.
"""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx2
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from transformers import AutoTokenizer

from app.config import ServeSettings
from benchmarks.reports import facts, model_store, write
from benchmarks.servers import (
    Server,
    link_model,
    no_server_left,
    sleb_serve_on,
    sleb_worker_on,
)
from benchmarks.workload import Prompts, SampleRequest
from pruning.config import child_environment
from pruning.models.demo_model import NAME

IDLE_WITHIN, BESIDE_JOB_WITHIN = 0.02, 0.05  # of 1, the centre of an interval that contains 1
_JOB_SAMPLES = 64  # so that it lasts longer than the measurement
_REQUESTS_PER_REPEAT = 4  # of bench
_TIMEOUT_S = 1800.0
_CONTROL_TIMEOUT_S = 120.0  # for the two replays of one request
_POLL_S = 0.5  # a poll takes a core from the replays for some milliseconds
# A service keeps one pair in eight as a control, so this would take hours.
_ALL_CONTROLS = """
from app.cli.main import main
from app.compare import shadow
shadow.CONTROL_SHARE = 1.0
main()
"""


@dataclass(frozen=True)
class Subject:
    """A running service with the model, and the settings with which it runs."""

    server: Server
    settings: ServeSettings
    requests: Sequence[SampleRequest]  # of each side


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = NAME,
    beside_job: Annotated[bool, typer.Option("--beside-job", help="Beside a pruning job.")] = False,
    sides: Annotated[int, typer.Option(min=2, help="Requests a side.")] = 60,
    dtype: str = "bfloat16",
    prompt_len: int = 64,
    output_len: int = 32,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    path = model_store(model).path(model)
    console, measured = Console(stderr=True), {}
    with (
        no_server_left(),
        subject(path, dtype, sides, (prompt_len, output_len), beside_job=beside_job) as each,
    ):
        for name, measure in INSTRUMENTS.items():
            with console.status(f"Comparing the dense model with itself by {name}"):
                measured[name] = measure(each)
    report = judged(measured, beside_job=beside_job)
    write({**report, "model": model, **facts("equal_models")}, out)
    Console().print_json(json.dumps(report))


@contextmanager
def subject(
    model: Path, dtype: str, num_requests: int, lengths: tuple[int, int], *, beside_job: bool
) -> Iterator[Subject]:
    """A service on a temporary data directory, by choice with a worker that prunes the model."""
    prompts = Prompts(AutoTokenizer.from_pretrained(model), seed=0)
    requests = prompts.uniform(num_requests, *lengths)
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        data_dir = Path(directory)
        link_model(model, data_dir / "models" / model.name, dtype)
        # of a name that no model has, as every replay is a control
        changes = {"data_dir": data_dir, "redis_url": None, "shadow_share": 1.0}
        settings = ServeSettings().model_copy(update={**changes, "shadow_direction": "@-1"})
        with (
            sleb_serve_on(settings, model.name, ("-c", _ALL_CONTROLS)) as server,
            _pruning(server, settings) if beside_job else nullcontext(),
        ):
            yield Subject(server, settings, requests)


@contextmanager
def _pruning(server: Server, settings: ServeSettings) -> Iterator[None]:
    """A pruning job that evaluates candidates, cancelled in the end."""
    text = {"dataset": "prose", "num_samples": _JOB_SAMPLES, "seqlen": 256}
    body = {"model": server.model, "sparsity": 0.5, "calibration": text, "repair": "none"}
    with sleb_worker_on(settings):
        url = f"{server.url}/prune-jobs/{_post(server, '/prune-jobs', body)['id']}"
        _wait_until(lambda: _num_evaluations(url) > 0)
        yield
        httpx2.post(f"{url}/cancel").raise_for_status()  # 409 if it has ended before
        _wait_until(lambda: httpx2.get(url).json()["status"] == "cancelled")


def _num_evaluations(job_url: str) -> int:
    job = httpx2.get(job_url).json()
    if job["status"] not in ("queued", "running"):
        raise RuntimeError(f"{job_url} is {job['status']}")
    return int((job["progress"] or {}).get("evaluations_done") or 0)


def _wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(_POLL_S)


def by_shadow(subject: Subject) -> Mapping[str, Any]:
    """One request after another, each of which is replayed twice.

    The service replays nothing while it times kernels again. Such a request is repeated.
    """
    server = subject.server
    for request in subject.requests:
        body = {
            "model": server.model,
            "prompt": request.text,
            "max_new_tokens": request.num_new_tokens,
            "ignore_eos": True,
        }
        while not _is_replayed(server, body):
            pass
    ratios, pairs = (
        [(labels, value) for labels, value in _samples(server, name) if labels["time"] == "tpot"]
        for name in ("sleb_shadow_control_speedup", "sleb_shadow_control_pairs")
    )
    [(_, num_pairs)] = pairs
    return {**{of["bound"]: value for of, value in ratios}, "num_pairs": int(num_pairs)}


def by_compare(subject: Subject) -> Mapping[str, Any]:
    """One prompt, each side as often as there are requests."""
    request, server = subject.requests[0], subject.server
    body = {
        "models": [server.model] * 2,
        "prompt": request.text,
        "max_new_tokens": request.num_new_tokens,
        "ignore_eos": True,
        "repeats": len(subject.requests),
    }
    control = _post(server, "/compare", body)["control"]
    return {
        **control["tpot"],
        "num_pairs": len(subject.requests),
        "agreement": control["agreement"],
    }


def by_bench(subject: Subject) -> Mapping[str, Any]:
    """``sleb bench`` in a process of its own: one client, several requests in each repeat."""
    prompt_ids, num_new = subject.requests[0].prompt_ids, subject.requests[0].num_new_tokens
    per_repeat = max(1, min(_REQUESTS_PER_REPEAT, len(subject.requests) // 2))
    sizes = {
        "prompt-tokens": len(prompt_ids),
        "served-tokens": num_new,
        "concurrency": 1,
        "requests": per_repeat,
        "repeats": len(subject.requests) // per_repeat,
    }
    out = subject.settings.data_dir / "bench"
    command = [sys.executable, "-m", "app", "bench", subject.server.model, "--variants", "dense"]
    command += ["--scenarios", "served", "--out", str(out), "--json"]
    command += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    environment = child_environment(subject.settings)
    result = json.loads(
        subprocess.check_output(command, env=environment, timeout=_TIMEOUT_S)  # noqa: S603 - our own command
    )
    [row] = [
        row
        for row in result["results"]
        if (row["variant"], row["time"]) == (result["control"], "tpot")
    ]
    return dict(row["speedup"])


INSTRUMENTS: Mapping[str, Callable[[Subject], Mapping[str, Any]]] = {
    "shadow": by_shadow,
    "compare": by_compare,
    "bench": by_bench,
}


def judged(measured: Mapping[str, Mapping[str, Any]], *, beside_job: bool) -> dict[str, Any]:
    """Whether each interval contains 1, with a centre that is near enough."""
    within = BESIDE_JOB_WITHIN if beside_job else IDLE_WITHIN
    passes = {
        name: each["low"] <= 1 <= each["high"] and abs(each["ratio"] - 1) <= within
        for name, each in measured.items()
    }
    return {
        "beside_job": beside_job,
        "within": within,
        "equal_models": {name: {**each, "passes": passes[name]} for name, each in measured.items()},
        "passes": all(passes.values()),
    }


def _is_replayed(server: Server, body: Mapping[str, Any]) -> bool:
    """Whether this request was replayed as a control. False if kernels were timed meanwhile.

    Raises ``RuntimeError`` if it was not replayed for another reason.
    """
    done, dropped = _num_controls(server), _num_dropped(server)
    _post(server, "/generate", body)
    pause = threading.Event()
    for _ in range(int(_CONTROL_TIMEOUT_S / _POLL_S)):
        pause.wait(_POLL_S)
        if _num_controls(server) > done:
            return True
        if reasons := [
            each for each, count in _num_dropped(server).items() if count > dropped[each]
        ]:
            if reasons == ["warming_up"]:
                return False
            raise RuntimeError(f"a request was not replayed: {', '.join(reasons)}")
    raise RuntimeError(f"a request was not replayed within {_CONTROL_TIMEOUT_S:.0f} s")


def _num_controls(server: Server) -> float:
    return sum(value for _, value in _samples(server, "sleb_shadow_control_done_total"))


def _num_dropped(server: Server) -> Counter[str]:
    samples = _samples(server, "sleb_shadow_dropped_total")
    return Counter({labels["reason"]: int(value) for labels, value in samples})


def _samples(server: Server, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of a metric: their labels, and their values."""
    text = httpx2.get(f"{server.url}/metrics").raise_for_status().text
    return [
        (dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def _post(server: Server, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    response = httpx2.post(f"{server.url}{path}", json=body, timeout=_TIMEOUT_S)
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


if __name__ == "__main__":
    typer.run(main)
