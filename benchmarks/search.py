"""How long the search takes: plain against shared prefixes, round by round on the same tokens.

The two alternate within one process, so that a noisy machine troubles both alike.
"""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.machine import machine
from pruning.blocks import block_list, num_blocks
from pruning.calibration import calibrate
from pruning.config import Settings
from pruning.demo_model import NAME, ensure_demo_model
from pruning.models import ModelStore, set_up_torch
from pruning.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import Removal, sleb
from pruning.spec import CalibrationSpec, Dataset

SCORERS = {"plain": PlainScorer, "exact": SharedPrefixScorer}


@dataclass
class Mode:
    """One scorer's search, and what it has cost so far."""

    search: Iterator[Removal]
    seconds: float = 0.0
    block_passes: int = 0
    removals: list[Removal] = field(default_factory=list)

    def next_round(self) -> None:
        began_s = time.perf_counter()
        self.removals.append(next(self.search))
        self.seconds += time.perf_counter() - began_s


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: str = NAME,
    reference: Annotated[Path | None, typer.Option(help="Token ids, order and losses.")] = None,
    text: Annotated[Path | None, typer.Option(help="Calibration text, else the model's.")] = None,
    num_windows: int = 16,
    seqlen: int = 128,
    seed: int = 0,
    num_remove: int = 6,
    dtype: str = "bfloat16",
    modes: Annotated[str, typer.Option(help="Some of plain, exact.")] = "plain,exact",
) -> None:
    set_up_torch()
    settings = Settings()
    if model == NAME:
        ensure_demo_model(settings.models_dir)
    loaded = ModelStore(settings.models_dir, allow_paths=True).load(model, dtype=dtype)
    truth = json.loads(reference.read_text()) if reference else None
    if truth:
        token_ids = torch.tensor(truth["input_ids"])
    else:
        source = Dataset.FILE if text else Dataset.SELF
        spec = CalibrationSpec(
            source,
            num_samples=num_windows,
            seqlen=seqlen,
            seed=seed,
            path=str(text) if text else None,
        )
        token_ids = calibrate(spec, loaded.model, loaded.tokenizer).token_ids
    blocks = num_blocks(loaded.model)
    measured = {
        name: Mode(sleb(SCORERS[name](loaded.model, token_ids), blocks, num_remove))
        for name in modes.split(",")
    }
    _run(measured, loaded.model, num_remove)
    reports = {name: _report(mode, measured, truth) for name, mode in measured.items()}
    report = {
        "modes": reports,
        "num_windows": token_ids.shape[0],
        "seqlen": token_ids.shape[1],
        "dtype": dtype,
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.search", *sys.argv[1:]]),
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    _print(reports)


def _run(measured: dict[str, Mode], model: PreTrainedModel, num_remove: int) -> None:
    """One round of each in turn, their block passes counted."""
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    for block in block_list(model):
        block.register_forward_hook(count)
    console = Console(stderr=True, highlight=False)
    for step in range(1, num_remove + 1):
        for name, mode in measured.items():
            passes = 0
            mode.next_round()
            mode.block_passes += passes
            found = mode.removals[-1].block
            console.print(f"round {step}, {name}: block {found}, {mode.seconds:.1f} s so far")


def _report(mode: Mode, measured: dict[str, Mode], truth: dict[str, Any] | None) -> dict[str, Any]:
    order = [removal.block for removal in mode.removals]
    plain = measured.get("plain")
    expected = truth["removal_order"][: len(order)] if truth else None
    return {
        "order": order,
        "losses": [removal.loss for removal in mode.removals],
        "seconds": round(mode.seconds, 2),
        "block_passes": mode.block_passes,
        "window_evaluations": sum(len(removal.scores) for removal in mode.removals),
        "order_equal_to_plain": order == [r.block for r in plain.removals] if plain else None,
        "order_equal_to_reference": order == expected if truth else None,
        "largest_loss_difference_to_reference": _difference(mode, truth) if truth else None,
        "speedup_vs_plain": round(plain.seconds / mode.seconds, 3) if plain else None,
    }


def _difference(mode: Mode, truth: dict[str, Any]) -> float:
    differences = [
        abs(loss - float(truth["scores"][removal.step - 1][str(block)]))
        for removal in mode.removals
        for block, loss in removal.scores.items()
    ]
    return max(differences)


def _print(modes: dict[str, dict[str, Any]]) -> None:
    table = Table()
    columns = ("seconds", "block_passes", "order_equal_to_reference", "speedup_vs_plain", "order")
    for heading in ("mode", *columns):
        table.add_column(heading)
    for name, report in modes.items():
        table.add_row(name, *(str(report[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
