"""Measure on a GPU whatever needs one. A part that fails is reported, and the others still run.

Weights are random and of published shapes, so no checkpoint and no network is needed.
"""

import gc
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks.gpu.arithmetic import CARDS
from benchmarks.gpu.families import families
from benchmarks.gpu.generation import generate, pruned, vllm
from benchmarks.gpu.healing import heal
from benchmarks.gpu.plan import GpuPlan, small
from benchmarks.gpu.prediction import assumptions, comparison, table
from benchmarks.gpu.report import markdown
from benchmarks.gpu.search import search, stream
from benchmarks.gpu.steps import int8, steps
from benchmarks.reports import facts, write
from benchmarks.servers import no_server_left
from pruning.models.memory import release_cache
from pruning.models.random_models import random_model
from pruning.models.store import set_up_torch

# In the order in which they run: first what decides whether the others mean anything.
ALONE: Mapping[str, Callable[[GpuPlan], dict[str, Any]]] = {
    "families": families,
    "stream": stream,
    "heal": heal,
    "vllm": vllm,
}
ON_ONE_MODEL: Mapping[str, Callable[[PreTrainedModel, GpuPlan], dict[str, Any]]] = {
    "steps": steps,
    "generate": generate,
    "pruned": pruned,
    "search": search,
    "int8": int8,
}
PARTS = ("families", *ON_ONE_MODEL, "stream", "heal", "vllm")


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for gpu.json and gpu.md.")] = None,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cuda",
    is_small: Annotated[
        bool, typer.Option("--small", help="Tiny shapes, to test the benchmark itself.")
    ] = False,
    parts: Annotated[str, typer.Option(help=f"Subset of {', '.join(PARTS)}.")] = ",".join(PARTS),
    minutes: Annotated[float, typer.Option(help="No part begins after this time.")] = 8.0,
    predict: Annotated[
        str, typer.Option(help=f"Only print what to expect of these cards: {', '.join(CARDS)}.")
    ] = "",
) -> None:
    """Run the parts, and write what they found after each of them."""
    if predict:
        show_prediction(predict)
        return
    if out is None:
        raise typer.BadParameter("--out: a folder is needed for what is measured")
    asked = [name for name in parts.split(",") if name]
    if not asked or set(asked) - set(PARTS):
        raise typer.BadParameter(f"--parts {parts}: expected some of {', '.join(PARTS)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(f"--device {device}: torch finds no GPU; use --device cpu --small")
    out.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    set_up_torch()
    plan = small(device) if is_small else GpuPlan(device)
    run = Run(plan, time.monotonic() + 60 * minutes)
    report: dict[str, Any] = {}
    for name in (part for part in PARTS if part in asked):
        run.part(name)
        report = {
            "parts": run.found,
            "problems": run.problems,
            "seconds": run.seconds,
            "warnings": run.warnings,
            **facts("gpu"),
        }
        report["comparison"] = comparison(report, plan)
        write(report, out / "gpu.json", markdown(report))
    Console().print(markdown(report), markup=False, soft_wrap=True)
    raise typer.Exit(1 if run.problems else 0)


def show_prediction(names: str) -> None:
    """Print the table of these cards, by their names with commas in between."""
    asked = names.split(",")
    if set(asked) - CARDS.keys():
        raise typer.BadParameter(f"--predict {names}: expected some of {', '.join(CARDS)}")
    cards = [CARDS[name] for name in asked]
    text = f"{table(GpuPlan('cuda'), cards)}\n\n{assumptions(cards)}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass
class Run:
    """What the parts have found so far, and the model that most of them share.

    No part begins after ``ends_s``, in seconds of ``time.monotonic``.
    """

    plan: GpuPlan
    ends_s: float
    found: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    model: PreTrainedModel | None = None

    def part(self, name: str) -> None:
        """Run one part. Its error is a problem of the report, not the end of the run."""
        began_s = time.monotonic()
        if began_s > self.ends_s:
            self.problems[name] = "not begun, as the time was up"
            return
        with _noted() as notes:
            try:
                self.found[name] = self._found(name)
            except Exception:  # noqa: BLE001 - the report says which, and other parts go on
                self.problems[name] = traceback.format_exc()
        self.seconds[name] = round(time.monotonic() - began_s, 1)
        if notes:
            self.warnings[name] = sorted(set(notes))
        state = "failed" if name in self.problems else "done"
        Console(stderr=True).print(f"{name}: {state} after {self.seconds[name]} s", markup=False)

    def _found(self, name: str) -> dict[str, Any]:
        if name in ALONE:
            self.model = None
            release_cache()
            return ALONE[name](self.plan)
        if self.model is None:
            self.model = random_model(
                self.plan.shape, "bfloat16", seed=self.plan.seed, device=self.plan.device
            )
        try:
            return ON_ONE_MODEL[name](self.model, self.plan)
        finally:
            gc.collect()  # engines and their caches are in cycles
            release_cache()


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect warnings and the warnings of loggers meanwhile."""
    notes: list[str] = []
    handler = BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
        notes += [record.getMessage() for record in handler.buffer]
        notes += [f"{each.category.__name__}: {each.message}" for each in caught]
    finally:
        logging.getLogger().removeHandler(handler)


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
