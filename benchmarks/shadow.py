"""The cost of shadow traffic for live requests, and what comparisons read for equal models.

For the cost, services with and without shadow traffic take turns. Requests arrive at random and
leave the engine idle at times, as replays need. The percentiles of a side are over the requests of
all of its passes. The parts ``shadow``, ``compare`` and ``bench`` compare the dense model with
itself, one client at a time.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from app.compare.speedup import alternate
from app.config import ServeSettings
from app.settings import check_variables
from benchmarks.equal_models import INSTRUMENTS, judged, num_dropped, samples, subject
from benchmarks.latencies import Pass
from benchmarks.load import closed_loop, open_loop
from benchmarks.model import model_store
from benchmarks.reports import facts, write
from benchmarks.servers import Server, no_server_left, sleb_serve_on
from benchmarks.workload import SampleRequest
from pruning.models.names import VariantName
from pruning.models.store import ModelStore

_MAX_RATIO = 1.05  # live p95 with shadow traffic over that without
_SETTLE_TIMEOUT_S = 300.0  # for all replays to end
_NUM_WARM_UP = 8  # requests


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A published variant.")] = "smollm2-135m@-6",
    parts: Annotated[
        str, typer.Option(help="cost, or any of shadow, compare, bench: equal models.")
    ] = "cost",
    beside_job: Annotated[
        bool, typer.Option("--beside-job", help="Equal models beside a pruning job.")
    ] = False,
    sides: Annotated[int, typer.Option(min=2, help="Requests a side of equal models.")] = 60,
    dtype: Annotated[str, typer.Option(help="Of equal models.")] = "bfloat16",
    load: Annotated[
        float, typer.Option(help="Request rate, as a share of that of one client.")
    ] = 0.4,
    requests: Annotated[int, typer.Option(min=1, help="Requests per pass.")] = 40,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each side.")] = 6,
    prompt_len: int = 64,
    output_len: int = 32,
    seed: int = 0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    check_variables()
    lengths = prompt_len, output_len
    if parts == "cost":
        found = _cost(model, load, requests, repeats, lengths, seed)
    else:
        name = VariantName.parse(model).model
        found = _equal_models(name, parts.split(","), dtype, sides, lengths, beside_job=beside_job)
    write({**found, "model": model, **facts("shadow")}, out)
    Console().print_json(
        json.dumps({key: value for key, value in found.items() if key != "seconds"})
    )


def _equal_models(
    model: str,
    parts: Sequence[str],
    dtype: str,
    num_requests: int,
    lengths: tuple[int, int],
    *,
    beside_job: bool,
) -> dict[str, Any]:
    if unknown := set(parts) - {*INSTRUMENTS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected {', '.join(INSTRUMENTS)}")
    path = model_store(model).path(model)
    console, found = Console(stderr=True), {}
    with subject(path, dtype, num_requests, lengths, beside_job=beside_job) as each:
        for part in parts:
            with console.status(f"Comparing the dense model with itself by {part}"):
                found[part] = INSTRUMENTS[part](each)
    return judged(found, beside_job=beside_job)


def _cost(
    model: str, load: float, requests: int, repeats: int, lengths: tuple[int, int], seed: int
) -> dict[str, Any]:
    settings = ServeSettings()
    workload = _workload(settings, model, requests, lengths, seed)
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                sleb_serve_on(settings.model_copy(update={"shadow_share": share}), model)
            )
            for name, share in (("off", 0.0), ("on", 1.0))
        }
        per_s = load * _warmed_up_rate(sides, workload)
        passes: dict[str, list[Pass]] = {name: [] for name in sides}
        for repeat, name in alternate(list(sides), repeats):
            passes[name].append(open_loop(sides[name], workload, per_s, seed + repeat))
            _settle(sides["on"], num_requests=_NUM_WARM_UP + requests * len(passes["on"]))
        counts = _shadow_counts(sides["on"])
    return {**_report(passes), "shadow": counts, "requests_per_s": round(per_s, 4)}


def _workload(
    settings: ServeSettings, model: str, num_requests: int, lengths: tuple[int, int], seed: int
) -> list[SampleRequest]:
    """Requests of random token ids, with these lengths of prompt and output."""
    info = ModelStore(settings.models_dir).inspect(VariantName.parse(model).model)
    draw = Random(seed)  # noqa: S311 - no secret
    prompt_len, output_len = lengths
    return [
        SampleRequest("", tuple(draw.choices(range(info.vocab_size), k=prompt_len)), output_len)
        for _ in range(num_requests)
    ]


def _warmed_up_rate(sides: Mapping[str, Server], workload: Sequence[SampleRequest]) -> float:
    """Requests per second of one client without shadow traffic. Warms up both sides."""
    few = {
        name: closed_loop(server, workload[:_NUM_WARM_UP], concurrency=1)
        for name, server in sides.items()
    }
    _settle(sides["on"], num_requests=_NUM_WARM_UP)
    return len(few["off"].timings) / few["off"].seconds


def _report(passes: Mapping[str, list[Pass]]) -> dict[str, Any]:
    """Percentiles in seconds. ``passes`` is whether every p95 ratio is within ``_MAX_RATIO``."""
    found = {name: _latencies(of_side) for name, of_side in passes.items()}
    ratios = {what: round(found["on"][what] / off, 4) for what, off in found["off"].items()}
    holds = all(ratio <= _MAX_RATIO for what, ratio in ratios.items() if what.endswith("p95"))
    return {"seconds": found, "ratios": ratios, "passes": holds}


def _latencies(passes: list[Pass]) -> dict[str, float]:
    timings = [timing for one in passes for timing in one.timings]
    times = {
        "ttft": [timing.ttft_s for timing in timings],
        "e2e": [timing.received_s[-1] - timing.sent_s for timing in timings],
    }
    return {
        f"{what}_p{share}": float(np.percentile(values, share))
        for what, values in times.items()
        for share in (50, 95)
    }


def _settle(server: Server, num_requests: int) -> None:
    """Wait until all replays are done or dropped, so that none overlaps the next pass."""
    pause = threading.Event()
    for _ in range(int(_SETTLE_TIMEOUT_S / 0.2)):
        if sum(_shadow_counts(server).values()) >= num_requests:
            return
        pause.wait(0.2)
    raise RuntimeError(f"replays have not ended within {_SETTLE_TIMEOUT_S:.0f} s")


def _shadow_counts(server: Server) -> dict[str, float]:
    """The numbers of pairs done, of controls, and of those dropped by reason."""
    names = {"done": "sleb_shadow_done_total", "control": "sleb_shadow_control_done_total"}
    found = {
        what: total
        for what, name in names.items()
        if (total := sum(value for _, value in samples(server, name)))
    }
    return {**found, **num_dropped(server)}


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
