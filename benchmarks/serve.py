"""Benchmark of serving: against transformers, vLLM and llama.cpp.

All sides of a comparison alternate on the same requests, whose output lengths are fixed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from app.engine.variant import make_variant
from benchmarks import offline, peers
from benchmarks.plan import Baseline, Part, PartResult, ServePlan, ServeSubject
from benchmarks.reports import facts, model_store, named, write
from benchmarks.search import Dtype
from benchmarks.servers import no_server_left
from benchmarks.traffic import traffic
from pruning.config import Settings
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch

PARTS: Mapping[Part, Callable[[ServeSubject, ServePlan], PartResult]] = {
    Part.OFFLINE: offline.offline,
    Part.MIXED: offline.mixed,
    Part.BATCH1: offline.batch1,
    Part.PEERS: peers.peers,
    **{part: partial(traffic, part) for part in (Part.PREFIX, Part.CHAT, Part.LONG)},
}
AT_LEAST, AT_MOST = "at least", "at most"
_MIN_HITS = 0.95  # of the tokens that could be reused


def _of_traffic(part: str, *, has_hits: bool = True) -> Mapping[str, tuple[str, float]]:
    """Targets of a part with traffic like that of users."""
    targets = {
        f"{part}_vs_vllm": (AT_LEAST, 1.0),  # requests per second
        f"{part}_ttft_vs_vllm": (AT_MOST, 1.0),  # median
        f"{part}_worst_ttft_vs_vllm": (AT_MOST, 1.0),
    }
    return {**targets, f"{part}_hits": (AT_LEAST, _MIN_HITS)} if has_hits else targets


TARGETS: Mapping[str, tuple[str, float]] = {
    "offline_vs_generate": (AT_LEAST, 1.6),
    "offline_mixed_vs_static": (AT_LEAST, 2.2),
    "batch1_vs_generate": (AT_LEAST, 1.6),
    "batch1_vs_floor": (AT_MOST, 1.5),
    "http_vs_vllm": (AT_LEAST, 1.0),  # with the number of clients where it is least
    "http_vs_llama_cpp": (AT_LEAST, 1.0),  # likewise
    **_of_traffic("prefix"),
    **_of_traffic("chat"),
    **_of_traffic("long", has_hits=False),
}


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
        parts=tuple(named(parts, Part)),
        against=tuple(named(against, Baseline)),
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
    ratios: Mapping[str, float | None] = {}
    tables = ""
    for part in plan.parts:
        began_s = time.perf_counter()
        results[part] = PARTS[part](subject, plan)
        seconds[part] = round(time.perf_counter() - began_s, 1)
        progress.print(f"{part}: {seconds[part]} s")
        ratios = all_ratios({k: v for one in results.values() for k, v in one.ratios.items()})
        report = {
            "ratios": ratios,
            "parts": {name: one.details for name, one in results.items()},
            "kernels": {what: asdict(one) for what, one in subject.tuner.choices.items()},
            "seconds": seconds,
            "model": subject.dense.name,
            "dtype": subject.dtype,
            "plan": asdict(plan),
            **facts("serve"),
        }
        tables = "\n".join(one.markdown for one in results.values() if one.markdown)
        write(report, out, tables)
    if tables:
        Console().print(Markdown(tables))
    Console().print(_table(ratios))


def _subject(name: str, dtype: Dtype, threads: int | None) -> ServeSubject:
    settings, store = Settings(), model_store(name)
    threads = threads or settings.threads
    set_up_torch(threads)
    path = store.path(name).absolute()
    loaded = store.load(name, dtype=dtype, device=settings.device)
    dense = make_variant(path.name, path.name, loaded.model)
    return ServeSubject(path, dense, loaded.tokenizer, dtype, threads)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--concurrency {text}: expected numbers separated by commas"
        ) from error


def all_ratios(ratios: Mapping[str, float | None]) -> dict[str, float | None]:
    """All ratios of ``TARGETS``. None if it was not measured."""
    values = {name: ratios.get(name) for name in TARGETS}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def is_met(value: float, wanted: tuple[str, float]) -> bool:
    sense, limit = wanted
    return value >= limit if sense == AT_LEAST else value <= limit


def _table(ratios: Mapping[str, float | None]) -> Table:
    table = Table("ratio", "measured", "target", "met")
    for name, value in ratios.items():
        sense, limit = TARGETS[name]
        table.add_row(
            name,
            "-" if value is None else f"{value:.3f}",
            f"{sense} {limit:.3g}",
            "" if value is None else "yes" if is_met(value, TARGETS[name]) else "no",
        )
    return table


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
