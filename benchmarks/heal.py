"""What healing gives back: losses of the raw, the repaired, the healed and the control model, by
domain and depth, on text that took no part in any fit, training or choice, and their probe scores.

The share that comes back is (raw - model) / (raw - dense), in nats per token.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from app.bench.machine import machine
from benchmarks.heal_memory import Peak, bytes_without, counted, parts
from benchmarks.heal_report import write
from benchmarks.heal_serving import steps_of
from benchmarks.heal_shapes import pace
from benchmarks.model import model_store
from pruning.data.calibration import evaluation_windows, healing_windows, repair_windows
from pruning.data.windows import Windows
from pruning.evaluation.probe import Item, digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.probe_scores import ItemResult, compare
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.evaluation.quality import Measured
from pruning.healing.adapter import Adapter, Merged
from pruning.healing.students import alone
from pruning.healing.text import HealingText
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, Own, num_blocks
from pruning.models.demo_model import NAME
from pruning.models.random_models import SHAPES
from pruning.models.store import set_up_torch
from pruning.removal import Losses, kept
from pruning.repair.choose import choose
from pruning.repair.folding import folded
from pruning.repair.repair import RepairText, repair_depths
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.sleb import Blocks
from pruning.spec.calibration import CalibrationMix, default_calibration
from pruning.spec.heal import Heal
from pruning.spec.prune import Resident

_NEVER = 2**31  # rises of the loss that end a training
_STEPS_OF_PEAK = 5  # in which memory is measured


@dataclass(frozen=True)
class Bench:
    """What all depths share."""

    dense: DenseModel
    calibration: CalibrationMix
    judged: Mapping[str, Windows]
    items: Sequence[Item]
    heal: Heal
    sequences: Sequence[int]  # in a decode step
    bytes_before: int  # of this process, without a model

    @property
    def every_block(self) -> Blocks:
        return tuple(range(num_blocks(self.dense.model)))


@dataclass(frozen=True)
class Trained:
    """A model after its training, its adapter at the best step, and a report of the training."""

    model: PrunedModel
    adapter: Adapter
    run: Mapping[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, the table and the picture.")],
    order: Annotated[str, typer.Option(help="Blocks in order of removal, as 14,26,13.")] = "",
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "6,9",
    num_tokens: Annotated[int, typer.Option(help="To train on, for each depth.")] = Heal.num_tokens,
    max_minutes: Annotated[float | None, typer.Option(help="For each depth.")] = None,
    learning_rate: float | None = Heal.learning_rate,
    rank: int = Heal.rank,
    batch_tokens: int = Heal.batch_tokens,
    seqlen: int = 128,
    num_samples: Annotated[int, typer.Option(help="Windows of a calibration.")] = 32,
    num_held_out: Annotated[int, typer.Option(help="Windows of each domain to judge on.")] = 64,
    num_items: Annotated[int, typer.Option(help="Questions of each kind of the probe.")] = 200,
    dtype: str = "auto",
    control: Annotated[bool, typer.Option(help="Train the dense model as well.")] = True,
    sequences: Annotated[
        str, typer.Option(help="Of the decode steps that are measured.")
    ] = "1,8,64",
    shapes: Annotated[str, typer.Option(help=f"Also the pace of {', '.join(SHAPES)}.")] = "",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Heal the depths of a removal order, and measure the pace at published shapes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    set_up_torch(threads)
    heal = Heal(
        num_tokens=num_tokens,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        rank=rank,
        alpha=2.0 * rank,
        batch_tokens=batch_tokens,
        control=control,
    )
    removed = [int(block) for block in order.split(",") if block]
    report = {
        "model": model,
        "removed": removed,
        "heal": heal.to_dict(),
        "shapes": [{"shape": name, **pace(name, heal)} for name in shapes.split(",") if name],
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.heal", *sys.argv[1:]]),
        "held_out": {},
        "depths": [],
    }
    if removed:
        path = model_store(model).path(model)
        before = bytes_without(path)
        dense = load_dense_model(path, Resident.MODEL, Resources(), dtype=dtype)
        held_out = default_calibration(num_samples=2 * num_held_out, seqlen=seqlen)
        bench = Bench(
            dense,
            default_calibration(num_samples=num_samples, seqlen=seqlen),
            evaluation_windows(held_out, dense.model, dense.tokenizer),
            probe_items(num_items=num_items),
            heal,
            [int(number) for number in sequences.split(",")],
            before,
        )
        report |= _depths(bench, [tuple(removed[: int(number)]) for number in depths.split(",")])
    write(report, out)


def _depths(bench: Bench, removals: Sequence[Blocks]) -> dict[str, Any]:
    control = _control(bench) if bench.heal.control else None
    return {
        "dtype": str(bench.dense.model.dtype).removeprefix("torch."),
        "held_out": {name: list(of.token_ids.shape) for name, of in bench.judged.items()},
        "depths": [_depth(bench, removed, control) for removed in removals],
    }


def _control(bench: Bench) -> Trained:
    """The dense model after all steps, whether they made it better or worse."""
    everything = replace(bench.heal, max_minutes=None, patience=_NEVER)
    return _trained(
        replace(bench, heal=everything), _text(bench), bench.every_block, NO_OWN, of_last=True
    )


def _depth(bench: Bench, removed: Blocks, control: Trained | None) -> dict[str, Any]:
    """The models without these blocks, as JSON."""
    dense, keep = bench.dense, kept(num_blocks(bench.dense.model), removed)
    text = _text(bench)
    repaired = _repaired(bench, keep)
    healed = _trained(bench, text, keep, repaired)
    models = {
        "dense": PrunedModel(bench.every_block),
        "raw": PrunedModel(keep),
        "repaired": PrunedModel(keep, repaired),
        "healed": healed.model,
    }
    runs = {"healed": healed.run}
    if control is not None:
        runs["control"], models["control"] = control.run, control.model
    return {
        "num_removed": len(removed),
        "train": {domain: list(ids.shape) for domain, ids in text.train.items()},
        "domains": _judged(dense, models, bench.judged),
        "probe": _probed(bench, models),
        "runs": runs,
        "serving": steps_of(dense, keep, healed.model.own, healed.adapter, bench.sequences),
    }


def _text(bench: Bench) -> HealingText:
    windows = healing_windows(bench.calibration, bench.dense.model, bench.dense.tokenizer)
    return HealingText(_token_ids(windows.train), _token_ids(windows.selection))


def _repaired(bench: Bench, keep: Blocks) -> Own:
    dense = bench.dense
    windows = repair_windows(bench.calibration, dense.model, dense.tokenizer)
    text = RepairText(_token_ids(windows.train), _token_ids(windows.selection))
    [depth] = repair_depths(
        dense.visited(), [keep], text, batch_tokens=dense.resources.batch_tokens
    )
    return dict(folded(dense.model, keep, choose(depth), dense.read))


def _trained(
    bench: Bench, text: HealingText, keep: Blocks, own: Own, *, of_last: bool = False
) -> Trained:
    """The model at the best step, or ``of_last`` at the last one."""
    dense, heal = bench.dense, bench.heal
    students = alone(dense.model, keep, own, heal)
    adapter = students.adapter
    micro_tokens = dense.resources.batch_tokens
    training = Training(dense.model, students, text, heal, micro_tokens=micro_tokens)
    steps = training.steps()
    peak = Peak(dense.model.device, bench.bytes_before)
    made = list(islice(steps, _STEPS_OF_PEAK))
    num_bytes = peak.num_bytes()
    with counted(adapter.model) as activations:  # which keeps them, so the peak comes first
        made += islice(steps, 1)
    for step in steps:
        made.append(step)
        if step.check is not None:
            Console().print(f"{step.num_tokens} tokens: {step.check.loss:.4f} nats")
    memory = parts(dense.model, own, adapter, activations.num_bytes, num_bytes)
    tensors = adapter.values() if of_last else training.best
    adapter.load(tensors)
    done = training.progress
    run = {
        "num_tokens": done.num_tokens,
        "seconds": done.seconds,
        "checks": [asdict(check) for check in done.checks],
        "best": asdict(done.best),
        "losses": [(step.num_tokens, step.loss) for step in made],
        "bytes": memory,
    }
    merged = Merged(dense.model, keep, heal, tensors, own, dense.read)
    return Trained(PrunedModel(keep, dict(merged)), adapter, run)


def _judged(
    dense: DenseModel, models: Mapping[str, PrunedModel], judged: Mapping[str, Windows]
) -> dict[str, dict[str, Any]]:
    """Losses of every model on each domain, with paired standard errors."""
    found: dict[str, dict[str, Any]] = {}
    for domain, windows in judged.items():
        losses = dict(
            zip(models, pruned_losses(dense, list(models.values()), windows.token_ids), strict=True)
        )
        found[domain] = {name: _measured(losses, name) for name in models}
    return found


def _measured(losses: Mapping[str, Losses], name: str) -> dict[str, Any]:
    dense = losses["dense"]
    if name == "dense":
        return asdict(Measured.of_dense(dense))
    return asdict(Measured.against(dense, losses[name]))


def _probed(bench: Bench, models: Mapping[str, PrunedModel]) -> dict[str, dict[str, float]]:
    """Scores of the probe, and how far each is above the repaired model's, paired by question."""
    answers: dict[str, list[ItemResult]] = {
        name: answer(
            bench.dense.forward(model.keep, own=model.own), bench.dense.tokenizer, bench.items
        )
        for name, model in models.items()
    }
    found = {}
    for name, answered in answers.items():
        compared = compare(answered, answers["repaired"], digest(bench.items))
        found[name] = {
            "score": compared.dense.score,
            "over_repaired": compared.drop,
            "standard_error": compared.standard_error,
        }
    return found


def _token_ids(windows: Mapping[str, Windows]) -> dict[str, torch.Tensor]:
    return {domain: found.token_ids for domain, found in windows.items()}


if __name__ == "__main__":
    typer.run(main)
