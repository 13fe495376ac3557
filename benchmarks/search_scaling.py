"""Cost of the exact search by number of blocks and by number of tokens."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.bench.machine import machine
from benchmarks.modes import Meter, ModeFactory
from pruning.models.store import set_up_torch

NUM_BLOCKS = (8, 16, 32, 64)
NUM_WINDOWS = (8, 16, 32, 64)
SEQLEN = 64
NUM_REMOVE = 4
VOCAB_SIZE = 1024
STATE_BUDGET = 2**32  # bytes; enough to cache all states of every case


@dataclass(frozen=True)
class Case:
    num_blocks: int
    num_windows: int


@dataclass(frozen=True)
class ScalingRow:
    num_blocks: int
    num_tokens: int
    seconds: float
    block_passes: float
    ratio: float | None  # of the seconds to those of the case before

    @property
    def passes_per_square(self) -> float:
        """Block passes divided by the square of the blocks: bounded if the cost is quadratic."""
        return self.block_passes / self.num_blocks**2


def main(
    out: Annotated[
        Path, typer.Option(help="Where to write the JSON report, with a Markdown table beside it.")
    ],
    repeats: Annotated[
        int, typer.Option(min=1, help="Searches of each case. The median counts.")
    ] = 3,
    threads: int | None = None,
) -> None:
    """Time exact searches on random models. All cases alternate."""
    out.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    set_up_torch(threads)
    by_blocks = [Case(num_blocks, 16) for num_blocks in NUM_BLOCKS]
    by_tokens = [Case(16, num_windows) for num_windows in NUM_WINDOWS]
    cases = list(dict.fromkeys(by_blocks + by_tokens))
    turns = [{case: _search(case) for case in cases} for _ in range(repeats)]
    report = {
        "blocks": [asdict(row) for row in _rows(by_blocks, turns)],
        "tokens": [asdict(row) for row in _rows(by_tokens, turns)],
        "num_remove": NUM_REMOVE,
        "repeats": repeats,
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.search_scaling", *sys.argv[1:]]),
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    lines = [*_markdown(_rows(by_blocks, turns)), "", *_markdown(_rows(by_tokens, turns))]
    out.with_suffix(".md").write_text("\n".join([_HEAD, *lines, ""]))
    _show(_rows(by_blocks, turns), _rows(by_tokens, turns))


_HEAD = f"""\
# Cost of the exact search

{NUM_REMOVE} blocks removed from random Llama models, windows of {SEQLEN} tokens; medians. The JSON
file of the same name has the machine and the command.

A candidate costs the passes of the blocks behind it, n / 2 on average, and a round has fewer than
n candidates. The number of passes is therefore below n² x {NUM_REMOVE} / 2, which it approaches as
n grows: the last column stays below {NUM_REMOVE / 2:g}. In small models twice the blocks cost
somewhat more than four times as much.
"""


@cache
def _model(num_blocks: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return model


def _search(case: Case) -> tuple[float, float]:
    """Seconds and block passes of one whole search."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.num_windows, SEQLEN)
    windows = torch.randint(VOCAB_SIZE, shape, generator=generator)
    meter, model = Meter(case.num_windows), _model(case.num_blocks)
    handles = meter.attach(model)
    mode = ModeFactory(windows, STATE_BUDGET, meter).resident("exact", model)
    for _ in range(NUM_REMOVE):
        mode.advance()
    for handle in handles:
        handle.remove()
    return mode.cost.seconds, mode.cost.block_passes


def _rows(
    cases: Sequence[Case], turns: Sequence[dict[Case, tuple[float, float]]]
) -> list[ScalingRow]:
    rows: list[ScalingRow] = []
    for case in cases:
        seconds = median(turn[case][0] for turn in turns)
        rows.append(
            ScalingRow(
                num_blocks=case.num_blocks,
                num_tokens=case.num_windows * SEQLEN,
                seconds=round(seconds, 3),
                block_passes=turns[0][case][1],
                ratio=round(seconds / rows[-1].seconds, 2) if rows else None,
            )
        )
    return rows


def _cells(row: ScalingRow) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    numbers = [str(row.num_blocks), str(row.num_tokens), f"{row.seconds:.2f}"]
    passes = [f"{row.block_passes:.0f}", f"{row.passes_per_square:.2f}"]
    return [*numbers, ratio, *passes]


_HEADINGS = (
    *("blocks", "tokens", "seconds", "times the row above"),
    *("block passes", "passes / blocks²"),
)


def _markdown(rows: Sequence[ScalingRow]) -> list[str]:
    lines = [list(_HEADINGS), ["--:"] * len(_HEADINGS), *map(_cells, rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _show(*groups: Sequence[ScalingRow]) -> None:
    for rows in groups:
        table = Table(*_HEADINGS)
        for row in rows:
            table.add_row(*_cells(row))
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
