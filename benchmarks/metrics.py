"""Benchmark of the three metrics of the SLEB paper: perplexity at equal depth on held-out text."""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.bench.machine import machine
from benchmarks.model import model_store
from pruning.data.calibration import calibrate
from pruning.data.windows import Windows
from pruning.evaluation.perplexity import perplexity
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch
from pruning.removal import Removal
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.search import search
from pruning.search.state import ScoredCandidate, SearchState
from pruning.sleb import Blocks
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec


@dataclass(frozen=True)
class MetricResult:
    """Removal order, quality and cost of one metric."""

    order: tuple[int, ...]
    losses: tuple[float, ...]  # on the calibration windows after each removal, in nats per token
    perplexities: Mapping[int, float]  # on held-out text, by blocks removed
    evaluations: int
    seconds: float  # of the search alone


class _Progress(Observer):
    """An observer that counts evaluations and prints removals."""

    def __init__(self, console: Console, metric: Metric) -> None:
        self.evaluations = 0
        self._console = console
        self._metric = metric

    def evaluated(self, done: int, _total: int, _scored: Sequence[ScoredCandidate]) -> None:
        self.evaluations = done

    def removed(self, removal: Removal) -> None:
        self._console.print(f"{self._metric}: block {removal.block}, loss {removal.loss:.4f}")


class _HeldOut:
    """Perplexities on held-out text, cached by the kept blocks."""

    def __init__(self, dense: DenseModel, windows: Windows) -> None:
        self._scorer = dense.local_scorer(windows.token_ids)
        self._known: dict[Blocks, float] = {}

    def perplexity(self, keep: Blocks) -> float:
        if keep not in self._known:
            self._known[keep] = perplexity(self._scorer.losses(keep))
        return self._known[keep]


def main(
    out: Annotated[
        Path, typer.Option(help="Where to write the JSON report, with a Markdown table beside it.")
    ],
    calibration: Annotated[Path, typer.Option(help="Calibration text.")],
    held_out: Annotated[Path, typer.Option(help="Held-out text for the perplexities.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    num_windows: int = 16,
    seqlen: int = 128,
    seed: int = 0,
    held_out_windows: int = 32,
    held_out_seqlen: int = 512,
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "3,6,9",
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    set_up_torch()
    numbers = sorted({int(depth) for depth in depths.split(",")})
    text = _text(calibration, num_windows, seqlen, seed)
    spec = PruneSpec(model, num_remove=numbers[-1], calibration=text)
    path = model_store(spec.model).path(spec.model)
    dense = load_dense_model(path, spec.resident, Resources(), dtype=spec.dtype)
    windows = calibrate(text, dense.model, dense.tokenizer)
    other = _text(held_out, held_out_windows, held_out_seqlen, seed)
    held_out_text = _HeldOut(dense, calibrate(other, dense.model, dense.tokenizer))
    console = Console(stderr=True, highlight=False)
    report: dict[str, Any] = {
        "num_blocks": num_blocks(dense.model),
        "depths": numbers,
        "calibration": f"{calibration.name}, {num_windows} windows of {seqlen} tokens",
        "held_out": f"{held_out.name}, {held_out_windows} windows of {held_out_seqlen} tokens",
        "dense_perplexity": held_out_text.perplexity(tuple(range(num_blocks(dense.model)))),
        "metrics": {},
        "dtype": str(dense.model.dtype).removeprefix("torch."),
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.metrics", *sys.argv[1:]]),
    }
    for metric in Metric:
        found = _measure(
            replace(spec, metric=metric), dense, windows, held_out_text, numbers, console
        )
        report["metrics"][metric.value] = asdict(found)
        out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(_markdown(report))
    _show(report)


def _text(path: Path, num_windows: int, seqlen: int, seed: int) -> CalibrationSpec:
    return CalibrationSpec(
        Dataset.FILE, num_samples=num_windows, seqlen=seqlen, seed=seed, path=str(path)
    )


def _measure(
    spec: PruneSpec,
    dense: DenseModel,
    windows: Windows,
    held_out_text: _HeldOut,
    depths: Sequence[int],
    console: Console,
) -> MetricResult:
    progress = _Progress(console, spec.metric)
    began_s = time.perf_counter()
    removals = search(spec, dense, windows, progress, SearchState())
    seconds = time.perf_counter() - began_s
    order = tuple(removal.block for removal in removals)
    blocks = range(num_blocks(dense.model))
    keeps = {depth: tuple(b for b in blocks if b not in order[:depth]) for depth in depths}
    return MetricResult(
        order=order,
        losses=tuple(removal.loss for removal in removals),
        perplexities={depth: held_out_text.perplexity(keep) for depth, keep in keeps.items()},
        evaluations=progress.evaluations,
        seconds=round(seconds, 2),
    )


def _table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each metric."""
    depths = report["depths"]
    headings = ["metric", *(f"{depth} blocks" for depth in depths), "evaluations", "seconds"]
    lines = [
        [
            metric,
            *(f"{found['perplexities'][depth]:.2f}" for depth in depths),
            str(found["evaluations"]),
            f"{found['seconds']:.0f}",
        ]
        for metric, found in report["metrics"].items()
    ]
    return headings, lines


_HEAD = """\
# The paper's metrics at equal depth

Perplexity on {held_out}, of a model of {num_blocks} blocks.
That of the dense model is {dense_perplexity:.2f}. The search used {calibration}.
The JSON file of the same name has the machine and the command.
"""


def _markdown(report: Mapping[str, Any]) -> str:
    headings, lines = _table(report)
    rows = [headings, ["---", *["--:"] * (len(headings) - 1)], *lines]
    orders = [f"- {name}: {found['order']}" for name, found in report["metrics"].items()]
    table = [f"| {' | '.join(row)} |" for row in rows]
    parts = [_HEAD.format(**report), *table, "", "Removal orders:", ""]
    return "\n".join([*parts, *orders, ""])


def _show(report: Mapping[str, Any]) -> None:
    headings, lines = _table(report)
    table = Table(*headings, title=f"perplexity, dense {report['dense_perplexity']:.2f}")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
