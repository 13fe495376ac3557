"""Benchmark of serving: against transformers, vLLM and llama.cpp.

All sides of a comparison alternate on the same requests, whose output lengths are fixed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from app.engine.variant import make_variant
from benchmarks import offline_parts, peers
from benchmarks.model import model_store
from benchmarks.plan import Baseline, Part, PartResult, ServePlan, ServeSubject
from benchmarks.reports import facts, write
from benchmarks.search import Dtype
from benchmarks.serve_report import all_ratios, show
from benchmarks.servers import no_server_left
from benchmarks.traffic import traffic
from pruning.config import Settings
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch

_Name = TypeVar("_Name", Part, Baseline)

PARTS: Mapping[Part, Callable[[ServeSubject, ServePlan], PartResult]] = MappingProxyType(
    {
        Part.OFFLINE: offline_parts.offline,
        Part.MIXED: offline_parts.mixed,
        Part.BATCH1: offline_parts.batch1,
        Part.PEERS: peers.peers,
        **{part: partial(traffic, part) for part in (Part.PREFIX, Part.CHAT, Part.LONG)},
    }
)


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    parts: Annotated[str, typer.Option(help=f"Subset of {', '.join(Part)}.")] = ",".join(Part),
    against: Annotated[str, typer.Option(help=f"Subset of {', '.join(Baseline)}.")] = ",".join(
        Baseline
    ),
    concurrency: Annotated[
        str, typer.Option(help="Numbers of clients of the closed loops.")
    ] = "1,8,32,64",
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens.")] = 64,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens.")] = 64,
    dtype: Dtype = Dtype.BFLOAT16,
    repeats: Annotated[
        int, typer.Option(min=1, help="Passes of each side. The median counts.")
    ] = 3,
    seed: int = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch in every process.")] = None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    plan = ServePlan(
        parts=_names(parts, Part),
        against=_names(against, Baseline),
        concurrency=_numbers(concurrency),
        prompt_len=prompt_len,
        output_len=output_len,
        repeats=repeats,
        seed=seed,
    )
    run(_subject(model, dtype, threads), plan, out)


def run(subject: ServeSubject, plan: ServePlan, out: Path) -> None:
    """Run all parts in turn. The report is written after each of them."""
    progress = Console(stderr=True, highlight=False)
    results: dict[Part, PartResult] = {}
    seconds: dict[Part, float] = {}
    report: dict[str, object] = {}
    tables = ""
    for part in plan.parts:
        began_s = time.perf_counter()
        results[part] = PARTS[part](subject, plan)
        seconds[part] = round(time.perf_counter() - began_s, 1)
        progress.print(f"{part}: {seconds[part]} s")
        report = {
            "ratios": all_ratios({k: v for one in results.values() for k, v in one.ratios.items()}),
            "parts": {name: one.details for name, one in results.items()},
            "kernels": {what: asdict(one) for what, one in subject.tuner.choices.items()},
            "seconds": seconds,
            **_facts(subject, plan),
        }
        tables = "\n".join(one.markdown for one in results.values() if one.markdown)
        write(report, out, tables)
    show(report, tables, Console())


def _facts(subject: ServeSubject, plan: ServePlan) -> dict[str, object]:
    return {
        "model": subject.dense.name,
        "dtype": subject.dtype,
        "plan": asdict(plan),
        **facts("serve"),
    }


def _subject(name: str, dtype: Dtype, threads: int | None) -> ServeSubject:
    settings, store = Settings(), model_store(name)
    threads = threads or settings.threads
    set_up_torch(threads)
    path = store.path(name).absolute()
    loaded = store.load(name, dtype=dtype, device=settings.device)
    dense = make_variant(path.name, path.name, loaded.model)
    return ServeSubject(path, dense, loaded.tokenizer, dtype, threads)


def _names(text: str, kind: type[_Name]) -> tuple[_Name, ...]:
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - set(kind):
        raise typer.BadParameter(f"unknown {sorted(unknown)}; expected some of {', '.join(kind)}")
    return tuple(name for name in kind if name in names)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--concurrency {text}: expected numbers separated by commas"
        ) from error


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
