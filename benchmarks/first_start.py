"""The first start on a machine against a later one: seconds until answers, and time per token.

At the first start, blocks are compiled and the ways to compute are timed. ``sleb serve``
starts in an empty data directory, answers one request after another, and starts again there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from transformers import AutoTokenizer

from benchmarks.load import closed_loop
from benchmarks.model import model_store
from benchmarks.reports import facts, table, write
from benchmarks.servers import is_compiling, link_model, no_server_left, sleb_serve_in
from benchmarks.workload import Prompts, SampleRequest
from pruning.models.demo_model import NAME

_NUM_AFTER = 8  # requests, of which the first two may choose among compiled ways


@dataclass(frozen=True)
class Start:
    """One start of the service. Seconds count from then, milliseconds are medians per token."""

    ready_s: float
    first_token_s: float
    compiled_s: float  # equal to ``ready_s`` if all was kept
    ms_meanwhile: float | None  # None without a request that ended before
    ms_afterwards: float


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, with a table beside it.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    prompt_len: int = 32,
    output_len: int = 32,
    repeats: int = 3,
    dtype: str = "bfloat16",
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = model_store(model).path(model)
    prompts = Prompts(AutoTokenizer.from_pretrained(path), seed=0)
    requests = prompts.uniform(_NUM_AFTER, prompt_len, output_len)
    starts: dict[str, list[Start]] = {"first": [], "later": []}
    with no_server_left():
        for _ in range(repeats):
            with TemporaryDirectory(prefix="sleb-bench-") as directory:
                link_model(path, Path(directory) / "models" / path.name, dtype)
                for found in starts.values():
                    found.append(measured(Path(directory), path.name, requests))
    report = {
        **facts("first_start"),
        "lengths": [prompt_len, output_len],
        "starts": {name: [asdict(each) for each in found] for name, found in starts.items()},
    }
    write(report, out, markdown(starts))


def measured(data_dir: Path, model: str, requests: Sequence[SampleRequest]) -> Start:
    """Start the service and send one request at a time, until some ran on compiled steps."""
    began_s = time.perf_counter()
    with sleb_serve_in(data_dir, model, is_compiled=False) as server:
        assert server.pid is not None
        ready_s = compiled_s = time.perf_counter()
        first = closed_loop(server, requests[:1], 1).timings[0]
        meanwhile = []
        while is_compiling(server.pid):
            [timing] = closed_loop(server, requests[:1], 1).timings
            meanwhile.append(timing.tpot_s or 0.0)
            compiled_s = time.perf_counter()
        after = [timing.tpot_s or 0.0 for timing in closed_loop(server, requests, 1).timings]
    return Start(
        ready_s - began_s,
        first.received_s[0] - began_s,
        compiled_s - began_s,
        1000 * median(meanwhile) if meanwhile else None,
        1000 * median(after),
    )


def markdown(starts: Mapping[str, Sequence[Start]]) -> str:
    """A table of the medians over starts."""
    rows = []
    for name, found in starts.items():
        seconds = [
            median(getattr(each, field) for each in found)
            for field in ("ready_s", "first_token_s", "compiled_s")
        ]
        slow = [each.ms_meanwhile for each in found if each.ms_meanwhile is not None]
        cells = [
            name,
            *(f"{value:.1f} s" for value in seconds),
            f"{median(slow):.1f} ms" if slow else "-",
            f"{median(each.ms_afterwards for each in found):.1f} ms",
        ]
        rows.append(cells)
    headings = ("start", "ready", "first token", "compiled", "meanwhile", "afterwards")
    return (
        "# The first start\n\nSeconds from the start of `sleb serve`, and milliseconds per token "
        "of one request at a time, while blocks are compiled and afterwards. Medians; "
        "machine and command are in the JSON file of the same name.\n\n" + table(headings, rows)
    )


if __name__ == "__main__":
    typer.run(main)
