"""The time of a few blocks of a model by each kernel that its steps may run, in turns.

These are the runs that the tuner times, but with more turns, and all kernels are reported.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM

from app.engine.autotuning import Autotuner, Run
from app.engine.running.flat_model import FlatModel, flat_model, functions_of_steps
from benchmarks.reports import facts, model_store, write
from pruning.models.demo_model import NAME

_ROWS, _PROMPT, _TOKENS = 64, 1024, 4096


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = NAME,
    turns: Annotated[int, typer.Option(min=2, help="Of each kernel and shape.")] = 12,
) -> None:
    """Write the shortest time of each kernel for decodes and prompts of some shapes."""
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    dense = AutoModelForCausalLM.from_pretrained(model_store(model).path(model)).eval()
    tuner = Autotuner()
    for function in functions_of_steps(dense, tuner):
        function.load()
    flat = flat_model(dense, tuner)
    assert flat is not None
    measured = {key: _shortest_ms(runs, turns) for key, runs in _shapes(flat)}
    write({**facts("blocks"), "ms": measured}, out)


def _shapes(flat: FlatModel) -> Iterator[tuple[str, Mapping[str, Run]]]:
    for trial in flat.trials(_ROWS, _PROMPT, _TOKENS, _ROWS * 1024):
        if not trial.key.startswith("attention"):
            yield trial.key, trial.prepare()


@torch.inference_mode()
def _shortest_ms(runs: Mapping[str, Run], turns: int) -> Mapping[str, float]:
    """Of each run. One turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + turns):
        for name, run in runs.items():
            began_s = perf_counter()
            run()
            times[name].append(1000 * (perf_counter() - began_s))
    return {name: round(min(each[1:]), 3) for name, each in times.items()}


if __name__ == "__main__":
    typer.run(main)
