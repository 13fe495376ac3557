"""What a live stream feels while another variant is loaded: its time between tokens, in turns.

One client streams one output after another. In every second turn, a variant is loaded with the
matrices of its repair, unloaded and loaded again, as often as that is possible. The times between
tokens that were sent during a load count, and not those during an unload.
"""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import httpx2
import numpy as np
import typer
from rich.console import Console
from transformers import AutoTokenizer

from app.compare.speedup import alternate
from app.config import ServeSettings
from app.settings import check_variables
from benchmarks.latencies import Pass
from benchmarks.load import closed_loop
from benchmarks.reports import facts, write
from benchmarks.servers import Server, no_server_left, sleb_serve_on
from benchmarks.workload import Prompts
from pruning.models.names import VariantName
from pruning.models.store import ModelStore

_MAX_RATIO = 2.0  # of the p99 while a variant is loaded over that without
_SIDES = ("quiet", "loading")
_TIMEOUT_S = 300.0
_PAUSE_S = 0.5  # after an unload, so that the next load does not feel it


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    variant: Annotated[str, typer.Option(help="A published variant.")] = "smollm2-135m@-6",
    requests: Annotated[int, typer.Option(min=1, help="Outputs of a turn.")] = 4,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 5,
    prompt_len: int = 32,
    output_len: int = 128,
    seed: int = 0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    check_variables()
    settings = ServeSettings()
    dense = VariantName.parse(variant).model
    path = ModelStore(settings.models_dir).path(dense)
    prompts = Prompts(AutoTokenizer.from_pretrained(path), seed)
    workload = prompts.uniform(requests, prompt_len, output_len)
    gaps_s: dict[str, list[float]] = {side: [] for side in _SIDES}
    num_loads = 0
    with no_server_left(), sleb_serve_on(settings, dense) as server:
        closed_loop(server, workload, 1)
        for _, side in alternate(_SIDES, turns):
            if side == "quiet":
                gaps_s[side] += _gaps_s(closed_loop(server, workload, 1))
                continue
            with _Loading(server, variant) as loading:
                found = closed_loop(server, workload, 1)
            gaps_s[side] += _gaps_s(found, loading.loads_s)
            num_loads += len(loading.loads_s)
    times_ms = {side: _percentiles_ms(of_side) for side, of_side in gaps_s.items()}
    quiet, loading_ms = (times_ms[side] for side in _SIDES)
    ratios = {name: round(loading_ms[name] / of, 3) for name, of in quiet.items()}
    report = {
        "ms_between_tokens": times_ms,
        "ratios": ratios,
        "loads": num_loads,
        "passes": ratios["p99"] <= _MAX_RATIO,
        **facts("loading"),
    }
    write(report, out)
    Console().print_json(json.dumps(report))


class _Loading:
    """Loads and unloads a variant in a thread, until the context ends."""

    def __init__(self, server: Server, variant: str) -> None:
        self.loads_s: list[tuple[float, float]] = []  # from when to when
        self._url = f"{server.url}/models/{variant}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "_Loading":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._thread.join()

    async def _run(self) -> None:
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as client:
            while not self._is_over.is_set():
                began_s = time.perf_counter()
                (await client.post(f"{self._url}/load")).raise_for_status()
                self.loads_s.append((began_s, time.perf_counter()))
                (await client.post(f"{self._url}/unload")).raise_for_status()
                await asyncio.to_thread(self._is_over.wait, _PAUSE_S)


def _gaps_s(found: Pass, during_s: Sequence[tuple[float, float]] | None = None) -> list[float]:
    """Seconds between tokens, or those that overlap one of these times."""
    return [
        later - earlier
        for timing in found.timings
        for earlier, later in pairwise(timing.received_s)
        if during_s is None or any(earlier < end and later > begin for begin, end in during_s)
    ]


def _percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    return {
        f"p{share}": round(1000 * float(np.percentile(seconds, share)), 3) for share in (50, 99)
    }


if __name__ == "__main__":
    typer.run(main)
