"""What healing gives back: perplexities of the raw, the repaired, the healed and the control model,
by domain and depth, on text that took no part in any fit, training or choice.

The share that comes back is (raw - model) / (raw - dense), in nats per token.
"""

import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from app.bench.machine import machine
from benchmarks.heal_report import write
from benchmarks.model import model_store
from pruning.data.calibration import evaluation_windows, healing_windows, repair_windows
from pruning.data.windows import Windows
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.evaluation.quality import Measured
from pruning.healing.adapter import Merged, adapted
from pruning.healing.progress import Step
from pruning.healing.text import HealingText
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, Own, num_blocks, view
from pruning.models.demo_model import NAME
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


@dataclass(frozen=True)
class Trained:
    """A model after its training, what that took, and its steps."""

    model: PrunedModel
    steps: Sequence[Step]
    run: Mapping[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, the table and the picture.")],
    order: Annotated[str, typer.Option(help="Blocks in order of removal, as 14,26,13.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "6,9",
    num_tokens: Annotated[int, typer.Option(help="To train on, for each depth.")] = Heal.num_tokens,
    max_minutes: Annotated[float | None, typer.Option(help="For each depth.")] = None,
    learning_rate: float = Heal.learning_rate,
    rank: int = Heal.rank,
    batch_tokens: int = Heal.batch_tokens,
    seqlen: int = 128,
    num_samples: Annotated[int, typer.Option(help="Windows of a calibration.")] = 32,
    num_held_out: Annotated[int, typer.Option(help="Windows of each domain to judge on.")] = 64,
    dtype: str = "auto",
    control: Annotated[bool, typer.Option(help="Train the dense model as well.")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
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
    dense = load_dense_model(
        model_store(model).path(model), Resident.MODEL, Resources(), dtype=dtype
    )
    removed = tuple(int(block) for block in order.split(","))
    spec = default_calibration(num_samples=num_samples, seqlen=seqlen)
    held_out = default_calibration(num_samples=2 * num_held_out, seqlen=seqlen)
    judged = evaluation_windows(held_out, dense.model, dense.tokenizer)
    numbers = [int(number) for number in depths.split(",")]
    report = {
        "model": model,
        "removed": removed,
        "heal": heal.to_dict(),
        "held_out": {domain: list(of.token_ids.shape) for domain, of in judged.items()},
        "depths": [_depth(dense, spec, judged, heal, removed[:number]) for number in numbers],
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.heal", *sys.argv[1:]]),
    }
    write(report, out)


def _depth(
    dense: DenseModel,
    spec: CalibrationMix,
    judged: Mapping[str, Windows],
    heal: Heal,
    removed: Blocks,
) -> dict[str, Any]:
    """The models without these blocks, as JSON."""
    total = num_blocks(dense.model)
    keep, every_block = kept(total, removed), tuple(range(total))
    text = _text(dense, spec)
    repaired = _repaired(dense, spec, keep)
    healed = _trained(dense, text, heal, keep, repaired)
    models = {
        "dense": PrunedModel(every_block),
        "raw": PrunedModel(keep),
        "repaired": PrunedModel(keep, repaired),
        "healed": healed.model,
    }
    runs = {"healed": healed}
    if heal.control:
        runs["control"] = _trained(dense, text, heal, every_block, NO_OWN)
        models["control"] = runs["control"].model
    return {
        "num_removed": len(removed),
        "train": {domain: list(ids.shape) for domain, ids in text.train.items()},
        "domains": _judged(dense, models, judged),
        "runs": {name: _run(run) for name, run in runs.items()},
        "bytes": {
            "weights": sum(parameter.nbytes for parameter in dense.model.parameters()),
            "peak_of_process": _peak_bytes(dense.model.device),
        },
    }


def _text(dense: DenseModel, spec: CalibrationMix) -> HealingText:
    windows = healing_windows(spec, dense.model, dense.tokenizer)
    train, selection = _token_ids(windows.train), _token_ids(windows.selection)
    return HealingText(train, selection)


def _repaired(dense: DenseModel, spec: CalibrationMix, keep: Blocks) -> Own:
    windows = repair_windows(spec, dense.model, dense.tokenizer)
    text = RepairText(_token_ids(windows.train), _token_ids(windows.selection))
    [depth] = repair_depths(
        dense.visited(), [keep], text, batch_tokens=dense.resources.batch_tokens
    )
    return dict(folded(dense.model, keep, choose(depth), dense.read))


def _trained(dense: DenseModel, text: HealingText, heal: Heal, keep: Blocks, own: Own) -> Trained:
    adapter = adapted(view(dense.model, keep, own), heal)
    micro_tokens = dense.resources.batch_tokens
    training = Training(dense.model, adapter, text, heal, micro_tokens=micro_tokens)
    steps = []
    for step in training.steps():
        steps.append(step)
        if step.check is not None:
            Console().print(f"{step.num_tokens} tokens: {step.check.loss:.4f} nats")
    merged = Merged(dense.model, keep, heal, training.best, own, dense.read)
    done = training.progress
    run = {
        "num_tokens": done.num_tokens,
        "seconds": done.seconds,
        "checks": [asdict(check) for check in done.checks],
        "best": asdict(done.best),
        "adapter_bytes": adapter.num_bytes,
        "optimizer_bytes": 2 * adapter.num_bytes,
    }
    return Trained(PrunedModel(keep, merged), steps, run)


def _run(trained: Trained) -> dict[str, Any]:
    losses = [(step.num_tokens, step.loss) for step in trained.steps]
    return {**trained.run, "losses": losses}


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


def _token_ids(windows: Mapping[str, Windows]) -> dict[str, torch.Tensor]:
    return {domain: found.token_ids for domain, found in windows.items()}


def _peak_bytes(device: torch.device) -> int:
    """Of the GPU if there is one, and otherwise of this process, in all that it did so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
