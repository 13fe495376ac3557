"""What shadow traffic costs live requests: two services, one that replays all of them, in turn.

Requests come at random moments and leave the engine idle now and then, as replays need. The
percentiles of a side are over the requests of all its turns.
"""

import json
import shlex
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Annotated, Any

import httpx2
import numpy as np
import typer
from rich.console import Console

from app.bench.machine import machine
from app.compare.speedup import turn_order
from app.config import ServeSettings
from app.settings import check_variables
from benchmarks.latencies import Pass, RequestTiming
from benchmarks.load import closed_loop, open_loop
from benchmarks.servers import Server, no_server_left, sleb_serve_on
from benchmarks.workload import SampleRequest
from pruning.models.names import VariantName
from pruning.models.store import ModelStore

_MAX_RATIO = 1.05  # live p95 with shadow traffic over that without
_SETTLE_TIMEOUT_S = 300.0  # for replays to come to their end


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A published variant.")] = "smollm2-135m@-6",
    load: Annotated[float, typer.Option(help="Share of what one client manages.")] = 0.4,
    requests: Annotated[int, typer.Option(min=1, help="Of one turn.")] = 40,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 6,
    prompt_len: int = 64,
    output_len: int = 32,
    seed: int = 0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after all the work
    check_variables()
    settings = ServeSettings()
    info = ModelStore(settings.models_dir).inspect(VariantName.parse(model).model)
    draw = Random(seed)  # noqa: S311 - no secret
    workload = [
        SampleRequest("", tuple(draw.choices(range(info.vocab_size), k=prompt_len)), output_len)
        for _ in range(requests)
    ]
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                sleb_serve_on(settings.model_copy(update={"shadow_share": share}), model)
            )
            for name, share in (("off", 0.0), ("on", 1.0))
        }
        few = [closed_loop(server, workload[:8], concurrency=1) for server in sides.values()]
        _settle(sides["on"], num_requests=8)
        per_s = load * len(few[0].timings) / few[0].seconds
        passes: dict[str, list[Pass]] = {name: [] for name in sides}
        for repeat in range(repeats):
            for index in turn_order(len(sides), repeat):
                name = list(sides)[index]
                passes[name].append(open_loop(sides[name], workload, per_s, seed + repeat))
                _settle(sides["on"], num_requests=8 + requests * len(passes["on"]))
        counts = _shadow_counts(sides["on"])
    report = {
        **_report(passes),
        "shadow": counts,
        "requests_per_s": round(per_s, 4),
        "model": model,
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.shadow", *sys.argv[1:]]),
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    Console().print_json(json.dumps({its: report[its] for its in ("ratios", "passes", "shadow")}))


def _report(passes: Mapping[str, list[Pass]]) -> dict[str, Any]:
    """Percentiles in seconds; ``passes`` says whether the promise holds."""
    found = {name: _latencies(its) for name, its in passes.items()}
    ratios = {what: round(found["on"][what] / off, 4) for what, off in found["off"].items()}
    holds = all(ratio <= _MAX_RATIO for what, ratio in ratios.items() if what.endswith("p95"))
    return {"seconds": found, "ratios": ratios, "passes": holds}


def _latencies(passes: list[Pass]) -> dict[str, float]:
    answers = [answer for one in passes for answer in one.timings]
    times = {"ttft": [its.ttft_s for its in answers], "e2e": [_e2e_s(its) for its in answers]}
    return {
        f"{what}_p{share}": float(np.percentile(values, share))
        for what, values in times.items()
        for share in (50, 95)
    }


def _e2e_s(answer: RequestTiming) -> float:
    return answer.received_s[-1] - answer.sent_s


def _settle(server: Server, num_requests: int) -> None:
    """Until every live request's replay is done or dropped, so that none disturbs the next turn."""
    pause = threading.Event()
    for _ in range(int(_SETTLE_TIMEOUT_S / 0.2)):
        if sum(_shadow_counts(server).values()) >= num_requests:
            return
        pause.wait(0.2)
    raise RuntimeError(f"replays have not come to their end in {_SETTLE_TIMEOUT_S:.0f} s")


def _shadow_counts(server: Server) -> dict[str, float]:
    """Replays done, and dropped by reason."""
    lines = httpx2.get(f"{server.url}/metrics").raise_for_status().text.splitlines()
    found: dict[str, float] = {}
    for line in lines:
        labels, _, value = line.rpartition(" ")
        if line.startswith("sleb_shadow_done_total{"):
            found["done"] = found.get("done", 0.0) + float(value)
        elif line.startswith("sleb_shadow_dropped_total{"):
            reason = labels.partition('reason="')[2].partition('"')[0]
            found[reason] = found.get(reason, 0.0) + float(value)
    return found


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
