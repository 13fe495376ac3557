"""One healing of all depths: losses and probe at every depth, beside the repaired models and a
healing of the deepest alone; and what a step costs.

The removal order and the repairs are those of a published checkpoint. All text that is measured on
took no part in any fit, training or choice.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.reports import facts, write
from pruning.checkpoints.markdown import markdown_table
from pruning.checkpoints.store import Manifest, repair_of, verify
from pruning.data.calibration import RepairWindows, evaluation_windows, healing_windows
from pruning.data.texts import text_windows
from pruning.evaluation.probe import probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.evaluation.quality import Measured
from pruning.healing.adapter import depth_tensors, on_blocks, with_adapter
from pruning.healing.students import Student, Students, alone, of_order
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN
from pruning.models.store import ModelStore, set_up_torch
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.repair.repair import Repaired
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.calibration import default_calibration
from pruning.spec.heal import Heal
from pruning.spec.prune import Resident

_NEVER = 2**31  # rises of the loss that end a training
_TIMED_STEPS = 7  # of each kind, in turn, after one that nothing is counted of


@dataclass(frozen=True)
class Bench:
    dense: DenseModel
    source: Manifest
    repairs: Mapping[int, Repaired]
    text: RepairWindows
    heal: Heal

    @cached_property
    def deepest(self) -> int:
        return len(self.source.removed_blocks)

    def repaired(self, depth: int) -> PrunedModel:
        keep, repair = self.source.keep_after(depth), self.repairs.get(depth)
        if repair is None:
            return PrunedModel(keep)
        model, read = self.dense.model, self.dense.read
        return PrunedModel(keep, dict(folded(model, keep, repair, read)))

    def elastic(self) -> Students:
        order = self.source.removed_blocks
        return of_order(self.dense.model, order, self.repairs, self.heal)

    def single(self) -> Students:
        model = self.repaired(self.deepest)
        return alone(self.dense.model, model.keep, model.own, self.heal)

    def control(self) -> Students:
        return alone(self.dense.model, self.dense.every_block, NO_OWN, self.heal)

    def training(self, students: Students, heal: Heal) -> Training:
        micro_tokens = self.dense.resources.batch_tokens
        return Training(self.dense.model, students, self.text, heal, micro_tokens=micro_tokens)

    def healed(
        self, depth: int, student: Student, adapter: Mapping[str, torch.Tensor]
    ) -> PrunedModel:
        model, read, repair = self.dense.model, self.dense.read, self.repairs.get(depth)
        part = on_blocks(model, adapter, student.adapted)
        own = depth_tensors(model, student.keep, self.heal, part, repair, read)
        return PrunedModel(student.keep, dict(own))

    def merged(
        self,
        students: Students,
        adapter: Mapping[str, torch.Tensor],
        own: Mapping[str, torch.Tensor],
    ) -> PrunedModel:
        keep = students.each[-1].keep
        model, read = self.dense.model, self.dense.read
        return PrunedModel(keep, dict(with_adapter(model, self.heal, adapter, own, read, keep)))


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of a published checkpoint.")],
    models_dir: Annotated[Path, typer.Option(help="Directory that has its dense model.")],
    out: Annotated[Path, typer.Option(help="Where to write the JSON; Markdown goes beside it.")],
    num_tokens: Annotated[int, typer.Option(help="Of each training.")] = 400_000,
    steps_per_check: int = Heal.steps_per_check,
    seqlen: int = 128,
    num_samples: Annotated[int, typer.Option(help="Windows of a calibration.")] = 32,
    num_held_out: Annotated[int, typer.Option(help="Windows of each domain to judge on.")] = 64,
    num_items: Annotated[int, typer.Option(help="Questions of each kind; 0: no probe.")] = 200,
    dtype: str = "auto",
    single: Annotated[bool, typer.Option(help="Also heal the deepest alone.")] = True,
    control: Annotated[bool, typer.Option(help="Also train the dense model.")] = True,
    timed: Annotated[bool, typer.Option(help="Time steps of both kinds in turn.")] = True,
    text: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE to judge on too; repeat.")
    ] = None,
    num_windows: Annotated[int, typer.Option(help="Of 512 tokens, of each such text.")] = 16,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Heal all depths of a checkpoint's order with one adapter, and measure every depth."""
    out.parent.mkdir(parents=True, exist_ok=True)
    set_up_torch(threads)
    heal = Heal(num_tokens=num_tokens, steps_per_check=steps_per_check)
    bench = _bench(checkpoint, models_dir, heal, dtype, seqlen, num_samples)
    report: dict[str, Any] = {
        "checkpoint": bench.source.name,
        "removed": bench.source.removed_blocks,
        "dtype": str(bench.dense.model.dtype).removeprefix("torch."),
        "heal": heal.to_dict(),
        **facts("heal_depths"),
        "step_s": _step_times(bench) if timed else {},
        "bytes": _bytes(bench),
    }
    models, report["runs"] = _models(bench, is_single=single, has_control=control)
    held_out = default_calibration(num_samples=2 * num_held_out, seqlen=seqlen)
    windows = evaluation_windows(held_out, bench.dense.model, bench.dense.tokenizer)
    judged = {domain: of.token_ids[:num_held_out] for domain, of in windows.items()}
    for name, path in (each.split("=", 1) for each in text or []):
        judged[name] = spread(path, num_windows, 512, bench.dense)
    report |= {"domains": {}, "shares": {}, "probe": {}}
    for domain, token_ids in judged.items():
        report["domains"][domain] = _judged(bench.dense, models, token_ids)
        _write(report, out)  # a run that is cut off has what came before
    if num_items:
        report["probe"] = _probed(bench.dense, models, num_items)
        _write(report, out)
    Console().print(markdown(report))


def spread(text: str, num_windows: int, seqlen: int, dense: DenseModel) -> torch.Tensor:
    """Windows ``[num_windows, seqlen]`` of a text or file, spread evenly over it."""
    windows = text_windows(text, Path(), dense.model, dense.tokenizer, seqlen=seqlen).token_ids
    return windows[torch.linspace(0, len(windows) - 1, num_windows).long()]


def _write(report: dict[str, Any], out: Path) -> None:
    report["shares"] = shares(report["domains"])
    write(report, out, markdown(report))


def _bench(
    checkpoint: Path, models_dir: Path, heal: Heal, dtype: str, seqlen: int, num_samples: int
) -> Bench:
    source = verify(checkpoint)
    path = ModelStore(models_dir, allow_paths=True).inspect(source.parent).path
    dense = load_dense_model(path, Resident.MODEL, Resources(), dtype=dtype)
    repairs = {
        depth: repair
        for depth in range(1, len(source.removed_blocks) + 1)
        if (repair := repair_of(checkpoint, depth)) is not None and repair.method is not Method.NONE
    }
    calibration = default_calibration(num_samples=num_samples, seqlen=seqlen)
    windows = healing_windows(calibration, dense.model, dense.tokenizer)
    return Bench(dense, source, repairs, windows, heal)


def _step_times(bench: Bench) -> dict[str, Any]:
    """Seconds of a step of all depths and of the deepest alone, made in turn."""
    endless = replace(bench.heal, steps_per_check=_NEVER, num_tokens=2**40)
    kinds = {"all depths": bench.elastic(), "deepest alone": bench.single()}
    steps = {name: bench.training(students, endless).steps() for name, students in kinds.items()}
    tokens = bench.heal.batch_tokens
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + _TIMED_STEPS):
        for name, of_kind in steps.items():
            step = next(of_kind)
            if turn:
                seconds[name].append(tokens / step.tokens_per_s)
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    medians = {name: median(of_kind) for name, of_kind in seconds.items()}
    Console().print(medians, median(ratios))
    return {**medians, "ratio": median(ratios), "ratios": ratios}


def _bytes(bench: Bench) -> dict[str, int]:
    """Of the dense model, its blocks, what all depths share beside it, and what each has alone."""
    model = bench.dense.model
    students = bench.elastic()
    adapter = students.adapter.values()
    shared = with_adapter(model, bench.heal, adapter, NO_OWN, bench.dense.read)
    own = sum(
        tensor.nbytes for repair in bench.repairs.values() for tensor in repair.tensors.values()
    )
    return {
        "dense": sum(each.nbytes for each in model.parameters()),
        "blocks": sum(each.nbytes for each in model.model.layers.parameters()),
        "shared": sum(model.get_parameter(name).nbytes for name in shared),
        "repairs": own,
        "adapter": students.adapter.num_bytes,
    }


def _models(
    bench: Bench, *, is_single: bool, has_control: bool
) -> tuple[dict[str, PrunedModel], dict[str, Any]]:
    """All models to measure, by name, and what their trainings did."""
    models = {"dense": PrunedModel(bench.dense.every_block)}
    for depth in range(1, bench.deepest + 1):
        models[f"raw {depth}"] = PrunedModel(bench.source.keep_after(depth))
        models[f"repaired {depth}"] = bench.repaired(depth)
    runs: dict[str, Any] = {}
    students = bench.elastic()
    adapter, runs["all depths"] = _trained(bench, students, bench.heal)
    for depth, student in enumerate(students.each, start=1):
        models[f"healed {depth}"] = bench.healed(depth, student, adapter)
    if is_single:
        students, own = bench.single(), bench.repaired(bench.deepest).own
        adapter, runs["deepest alone"] = _trained(bench, students, bench.heal)
        models[f"alone {bench.deepest}"] = bench.merged(students, adapter, own)
    if has_control:
        students = bench.control()
        adapter, runs["control"] = _trained(
            bench, students, replace(bench.heal, patience=_NEVER), is_last=True
        )
        models["control"] = bench.merged(students, adapter, NO_OWN)
    return models, runs


def _trained(
    bench: Bench, students: Students, heal: Heal, *, is_last: bool = False
) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    training = bench.training(students, heal)
    pace = []
    for step in training.steps():
        if step.check is None:
            pace.append(step.tokens_per_s)
        else:
            depths = " ".join(f"{nats:.4f}" for nats in step.check.by_depth)
            Console().print(f"{step.num_tokens} tokens: {step.check.loss:.4f} nats {depths}")
    done = training.progress
    run = {
        "num_tokens": done.num_tokens,
        "seconds": done.seconds,
        "tokens_per_s": median(pace) if pace else None,
        "best": asdict(done.best),
        "checks": [asdict(check) for check in done.checks],
    }
    return students.adapter.values() if is_last else training.best, run


def _judged(
    dense: DenseModel,
    models: Mapping[str, PrunedModel],
    token_ids: torch.Tensor,
) -> dict[str, Any]:
    losses = dict(zip(models, pruned_losses(dense, [*models.values()], token_ids), strict=True))
    figures: dict[str, Any] = {
        name: asdict(Measured.against(losses["dense"], each)) for name, each in losses.items()
    }
    figures["dense"] = {"loss": fmean(losses["dense"])}
    return {"num_windows": len(token_ids), "models": figures}


def _probed(
    dense: DenseModel, models: Mapping[str, PrunedModel], num_items: int
) -> dict[str, float]:
    """The share of correct answers of every model but the raw ones."""
    items = probe_items(num_items=num_items)
    scores = {}
    for name, model in models.items():
        if not name.startswith("raw"):
            answers = answer(dense.forward(model.keep, own=model.own), dense.tokenizer, items)
            scores[name] = fmean(each.score for each in answers)
            Console().print(f"probe of {name}: {scores[name]:.3f}")
    return scores


def shares(domains: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The share of the lost nats that each model gives back, by domain."""
    by_domain: dict[str, dict[str, float]] = {}
    for domain, of in domains.items():
        losses = {name: each["loss"] for name, each in of["models"].items()}
        by_domain[domain] = {
            name: (losses[f"raw {depth}"] - loss) / (losses[f"raw {depth}"] - losses["dense"])
            for name, loss in losses.items()
            if (depth := name.rpartition(" ")[2]).isdigit() and not name.startswith("raw")
        }
    return by_domain


def markdown(report: Mapping[str, Any]) -> str:
    """A row for each depth and model, with the share that came back on each domain."""
    domains = report["shares"]
    depths = range(1, len(report["removed"]) + 1)
    names = [
        f"{kind} {depth}"
        for depth in depths
        for kind in ("repaired", "healed", "alone")
        if any(f"{kind} {depth}" in of for of in domains.values())
    ]
    lines = [
        "# One healing of all depths",
        "",
        f"{report['checkpoint']} in {report['dtype']}, {report['heal']['num_tokens']:,} tokens.",
        "Shares of the lost nats that came back, on held-out windows by domain.",
        "",
        markdown_table(
            ["model", *domains, "probe"],
            [
                [name, *(f"{of[name]:.0%}" for of in domains.values()), _probe(report, name)]
                for name in names
            ],
            1,
        ),
        "",
        *([f"Probe of the dense model: {_probe(report, 'dense')}."] if report["probe"] else []),
    ]
    return "\n".join([*lines, *_control(report), *_effort(report)]) + "\n"


def _probe(report: Mapping[str, Any], name: str) -> str:
    score = report["probe"].get(name)
    return "" if score is None else f"{score:.3f}"


def _control(report: Mapping[str, Any]) -> list[str]:
    gaps = {
        domain: of["models"]["control"]["loss"] - of["models"]["dense"]["loss"]
        for domain, of in report["domains"].items()
        if "control" in of["models"]
    }
    if not gaps:
        return []
    named = ", ".join(f"{domain} {nats:+.3f}" for domain, nats in gaps.items())
    return [f"Control against dense, in nats: {named}."]


def _effort(report: Mapping[str, Any]) -> list[str]:
    num_bytes_of, times = report["bytes"], report["step_s"]
    sizes = {name: f"{num_bytes / 1e6:.0f} MB" for name, num_bytes in num_bytes_of.items()}
    lines = [
        f"The dense model has {sizes['dense']}, of which blocks are {sizes['blocks']}.",
        f"All depths share {sizes['shared']} beside it, and repairs have {sizes['repairs']}.",
    ]
    if times:
        lines.append(
            f"A step takes {times['all depths']:.2f} s, of the deepest alone "
            f"{times['deepest alone']:.2f} s: {times['ratio']:.2f} times, the median of steps made "
            "in turn."
        )
    return lines


if __name__ == "__main__":
    typer.run(main)
