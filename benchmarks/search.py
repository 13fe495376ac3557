"""How long the search takes: its modes against each other, round by round on the same tokens.

They alternate within one process, so that a noisy machine troubles all of them alike.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.bench.machine import machine
from app.settings import check_variables
from benchmarks.modes import Bench, Meter, Mode, weight_bytes
from benchmarks.search_report import report, show
from pruning.config import Settings
from pruning.data.calibration import calibrate
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.memory import free_bytes
from pruning.models.random_models import SHAPES, random_model, random_tokens
from pruning.models.store import ModelStore, set_up_torch
from pruning.models.streaming import StreamedModel
from pruning.spec.calibration import CalibrationSpec, Dataset

MODES = ("plain", "exact", "staged", "stream")
RESIDENT = MODES[:3]


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Subject:
    """What is searched; ``model`` is only the skeleton if nothing but ``streamed`` is asked for."""

    model: PreTrainedModel
    streamed: StreamedModel | None
    windows: torch.Tensor  # token ids [num_windows, seqlen]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    random_weights: Annotated[
        str | None, typer.Option(help=f"Instead of a model, one of {', '.join(SHAPES)}.")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="Token ids, order and losses.")] = None,
    text: Annotated[Path | None, typer.Option(help="Calibration text, else the model's.")] = None,
    num_windows: int = 16,
    seqlen: int = 128,
    seed: int = 0,
    num_remove: int = 6,
    dtype: Dtype = Dtype.BFLOAT16,
    modes: Annotated[str, typer.Option(help=f"Some of {', '.join(MODES)}.")] = "plain,exact",
    plain_candidates: Annotated[
        int | None, typer.Option(min=1, help="Extrapolate plain from so many a round.")
    ] = None,
    state_budget: Annotated[
        int | None, typer.Option(help="Bytes for each mode, else a quarter of what is free.")
    ] = None,
) -> None:
    set_up_torch()
    names = _names(modes, plain_candidates)
    out.parent.mkdir(parents=True, exist_ok=True)  # now, not after a round of work
    truth = json.loads(reference.read_text()) if reference else None
    spec = _calibration(text, num_windows, seqlen, seed)
    if random_weights:
        subject = _random(random_weights, names, dtype, spec, truth)
    else:
        subject = _stored(model, names, dtype, spec, truth)
    budget = state_budget or free_bytes(subject.model.device) // 4
    if not 0 < num_remove <= (most := num_blocks(subject.model) - 2):
        raise typer.BadParameter(f"--num-remove={num_remove} of a model that can lose 1 to {most}")
    measured = _measured(subject, names, budget, plain_candidates)
    _run(measured, num_remove, out, truth, _facts(subject, dtype, budget))


def _run(
    measured: dict[str, Mode],
    num_remove: int,
    out: Path,
    truth: dict[str, Any] | None,
    facts: dict[str, Any],
) -> None:
    """One round of each in turn; what is known so far is written after every one."""
    progress = Console(stderr=True, highlight=False)
    for step in range(1, num_remove + 1):
        for name, mode in measured.items():
            mode.advance()
            progress.print(f"round {step}, {name}: {mode.cost.seconds:.1f} s so far")
        found = report(measured, truth)
        out.write_text(json.dumps({"modes": found, **facts}, indent=2) + "\n")
    show(found, Console())


def _facts(subject: Subject, dtype: Dtype, state_budget: int) -> dict[str, Any]:
    return {
        "num_windows": subject.windows.shape[0],
        "seqlen": subject.windows.shape[1],
        "dtype": dtype,
        "weight_bytes": weight_bytes(subject.model),
        "state_budget_bytes": state_budget,
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.search", *sys.argv[1:]]),
    }


def _names(modes: str, plain_candidates: int | None) -> Sequence[str]:
    names = modes.split(",")
    if unknown := set(names) - set(MODES):
        raise typer.BadParameter(f"unknown modes {sorted(unknown)}; there are {', '.join(MODES)}")
    if plain_candidates and set(names) <= {"plain"}:
        raise typer.BadParameter("--plain-candidates follows another mode: ask for one as well")
    return [name for name in MODES if name in names]


def _calibration(text: Path | None, num_windows: int, seqlen: int, seed: int) -> CalibrationSpec:
    source, path = (Dataset.FILE, str(text)) if text else (Dataset.SELF, None)
    return CalibrationSpec(source, num_samples=num_windows, seqlen=seqlen, seed=seed, path=path)


def _stored(
    name: str,
    names: Sequence[str],
    dtype: Dtype,
    spec: CalibrationSpec,
    truth: dict[str, Any] | None,
) -> Subject:
    check_variables()
    settings = Settings()
    if name == NAME:
        ensure_demo_model(settings.models_dir)
    store = ModelStore(settings.models_dir, allow_paths=True)
    streamed = StreamedModel(store.path(name), dtype=dtype) if "stream" in names else None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    speaks = spec.dataset is Dataset.SELF and truth is None
    if streamed and not speaks and set(names) == {"stream"}:
        model, tokenizer = streamed.model, streamed.tokenizer
    else:
        loaded = store.load(name, dtype=dtype)
        model, tokenizer = loaded.model, loaded.tokenizer
    if truth:
        return Subject(model, streamed, torch.tensor(truth["input_ids"]))
    return Subject(model, streamed, calibrate(spec, model, tokenizer).token_ids)


def _random(
    shape: str,
    names: Sequence[str],
    dtype: Dtype,
    spec: CalibrationSpec,
    truth: dict[str, Any] | None,
) -> Subject:
    if "stream" in names:
        raise typer.BadParameter(
            "stream reads a checkpoint from disk: leave it out, or name one with --model instead "
            "of --random-weights"
        )
    if truth or spec.path:
        raise typer.BadParameter("--random-weights takes random tokens: no --reference or --text")
    model = random_model(shape, dtype)
    return Subject(model, None, random_tokens(model, spec.num_samples, spec.seqlen, spec.seed))


def _measured(
    subject: Subject, names: Sequence[str], budget: int, plain_candidates: int | None
) -> dict[str, Mode]:
    """The modes asked for, in the order of ``MODES``."""
    meter = Meter(subject.windows.shape[0])
    bench = Bench(subject.windows, budget, meter)
    made: dict[str, Mode] = {}
    if subject.streamed is not None:
        meter.watch(subject.streamed.model)
        made["stream"] = bench.streamed(subject.streamed)
    if set(names) & set(RESIDENT):
        meter.watch(subject.model)
    for name in (name for name in names if name in {"exact", "staged"}):
        made[name] = bench.resident(name, subject.model)
    if "plain" in names:
        leader = next((made[name] for name in names if name in made), None)
        sampled = (plain_candidates, leader) if plain_candidates and leader else None
        made["plain"] = bench.resident("plain", subject.model, sampled)
    return {name: made[name] for name in names}


if __name__ == "__main__":
    typer.run(main)
