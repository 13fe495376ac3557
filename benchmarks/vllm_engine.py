"""What vLLM loses behind our API.

Closed loops of several numbers of clients with streams, in turns: through ``sleb serve`` with
``SLEB_ENGINE=vllm``, and directly against the ``vllm serve`` that it runs, as two of one model may
differ by a tenth of their times. It has the options of ``SLEB_VLLM_ARGS``. Wanted: 0.95 of its
tokens per second, and 1.1 times its time to the first token.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoTokenizer

from app.config import ServeSettings
from benchmarks.latencies import performance, run_in_turn
from benchmarks.load import closed_loop
from benchmarks.peers import SLEB, Closed, rows
from benchmarks.plan import Baseline
from benchmarks.reports import facts, write
from benchmarks.search import Dtype
from benchmarks.servers import no_server_left, sleb_serve_on, vllm_behind
from benchmarks.workload import Prompts
from pruning.checkpoints.markdown import markdown_table
from pruning.models.demo_model import NAME

_MIN_CLIENTS = 4  # whose requests are sent, also by fewer
_FREE = 64  # tokens of the context beyond those of a request


@dataclass(frozen=True)
class Sizes:
    """Lengths are in tokens."""

    clients: tuple[int, ...]
    prompt_len: int
    output_len: int
    repeats: int

    @property
    def max_len(self) -> int:
        return self.prompt_len + self.output_len + _FREE


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON and the table.")],
    program: Annotated[Path, typer.Option(help="The program vllm.")],
    model: Annotated[str, typer.Option(help="Of the data directory.")] = NAME,
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,16,64",
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens.")] = 64,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 4,
    dtype: Dtype = Dtype.BFLOAT16,
) -> None:
    numbers = tuple(int(each) for each in clients.split(","))
    sizes = Sizes(numbers, prompt_len, output_len, repeats)
    out.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    report: dict[str, Any] = {
        "model": model,
        "dtype": dtype.value,
        "sizes": asdict(sizes),
        **facts("vllm_engine"),
        "through_api": through_api(Subject(program.absolute(), model, dtype.value, sizes)),
    }
    write(report, out, markdown(report))
    sys.stdout.write(markdown(report))


@dataclass(frozen=True)
class Subject:
    """What is measured, with the settings of this process."""

    program: Path
    model: str
    dtype: str
    sizes: Sizes

    @property
    def settings(self) -> ServeSettings:
        given = ServeSettings()
        changes = {
            "engine": "vllm",
            "vllm": self.program,
            "vllm_args": f"--dtype {self.dtype} {given.vllm_args}",
            "kv_cache_bytes": 2 * 2**30,
            "max_model_len": self.sizes.max_len,
            "max_num_seqs": max(self.sizes.clients),
            "prefix_cache": "off",
            "preload": (self.model,),
            "redis_url": None,
        }
        return given.model_copy(update=changes)


def through_api(subject: Subject) -> dict[str, Any]:
    """Our figures over vLLM's for each number of clients."""
    directory, sizes = subject.settings.models_dir / subject.model, subject.sizes
    prompts = Prompts(AutoTokenizer.from_pretrained(directory), seed=0)
    with no_server_left(), sleb_serve_on(subject.settings, subject.model) as service:
        servers = {SLEB: service, Baseline.VLLM: vllm_behind(service)}
        passes_of: Closed = {
            number: run_in_turn(
                {
                    name: partial(closed_loop, server, concurrency=number)
                    for name, server in servers.items()
                },
                prompts.uniform(2 * max(number, _MIN_CLIENTS), sizes.prompt_len, sizes.output_len),
                sizes.repeats,
            )
            for number in sizes.clients
        }
    return {
        "over_vllm": rows(passes_of, Baseline.VLLM),
        "sides": {
            str(number): {name: performance(timed) for name, timed in passes.items()}
            for number, passes in passes_of.items()
        },
    }


def markdown(report: Mapping[str, Any]) -> str:
    cells = [
        (str(row["clients"]), f"{row['tokens_per_s']:.3f}×",
         f"{row['from']:.3f} to {row['to']:.3f}", f"{row['ttft']:.3f}×")
        for row in report["through_api"]["over_vllm"]
    ]  # fmt: skip
    table = markdown_table(("clients", "tokens per second", "range", "time to first token"), cells)
    title = "## vLLM through the API over vLLM directly"
    return "\n".join([title, "", table, "", f"`{report['command']}`", ""])


if __name__ == "__main__":
    typer.run(main)
