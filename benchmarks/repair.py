"""What repair gives back: losses without, with each repair, and with the chosen one, by domain,
depth and removal order, on text that took no part in any fit or choice.

The share that comes back is (pruned - repaired) / (pruned - dense), in nats per token.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer

from benchmarks.model import model_store
from benchmarks.repair_report import write
from benchmarks.reports import facts
from pruning.data.calibration import calibrate, evaluation_windows, repair_windows
from pruning.data.windows import Windows
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch
from pruning.removal import Losses, kept, paired_gaps, standard_error
from pruning.repair.choose import choose
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.repair.repair import RepairedDepth, RepairText, repair_depths
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.search import search
from pruning.search.state import SearchState
from pruning.sleb import Blocks
from pruning.spec.calibration import (
    Calibration,
    CalibrationMix,
    CalibrationSpec,
    Dataset,
    default_calibration,
)
from pruning.spec.prune import Metric, PruneSpec, Resident

_METRICS = ", ".join(Metric)


@dataclass(frozen=True)
class Order:
    """A removal order, and what the search for it took: seconds and the shape of its windows.

    Both are None for an order that was given.
    """

    removed: Blocks
    seconds: float | None = None
    windows: Sequence[int] | None = None


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON and the tables.")],
    order: Annotated[
        list[str],
        typer.Option(help=f"{_METRICS} to search for it, or NAME=14,26,...; repeat it."),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text file of a domain, in place of the packaged ones; repeat it."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "1,2,3,4,5,6,7,8,9",
    num_samples: Annotated[
        int, typer.Option(help="Calibration windows. Repair fits on four times as many.")
    ] = 16,
    num_held_out: Annotated[
        int, typer.Option(help="Windows of each packaged domain to evaluate on.")
    ] = 16,
    seqlen: int = 512,
    dtype: str = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    search_seqlen: Annotated[
        int | None, typer.Option(help="Tokens of a window of the searches; as all others.")
    ] = None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    set_up_torch(threads)
    path = model_store(model).path(model)
    dense = load_dense_model(path, Resident.MODEL, Resources(), dtype=dtype)
    numbers = [int(number) for number in depths.split(",")]
    asked = dict(_parsed(each, max(numbers)) for each in order)
    spec = _calibration(text, num_samples, seqlen)
    searched = PruneSpec(
        model,
        num_remove=max(numbers),
        calibration=_calibration(text, num_samples, search_seqlen or seqlen),
    )
    orders = {name: known or _searched(dense, searched, name) for name, known in asked.items()}
    # the windows of a file have one use only if the sizes of all uses are known together
    held_out = spec if text else default_calibration(num_samples=2 * num_held_out, seqlen=seqlen)
    report = measured(dense, spec, held_out, orders, numbers)
    write(report, out)


def measured(
    dense: DenseModel,
    spec: Calibration,
    held_out: Calibration,
    orders: Mapping[str, Order],
    numbers: Sequence[int],
) -> dict[str, Any]:
    """The report, as JSON, for ``numbers`` of removed blocks in each of the orders."""
    windows = repair_windows(spec, dense.model, dense.tokenizer)
    judged = evaluation_windows(held_out, dense.model, dense.tokenizer)
    train, selection = _token_ids(windows.train), _token_ids(windows.selection)
    repaired = {
        name: _repaired(dense, of.removed, numbers, RepairText(train, selection))
        for name, of in orders.items()
    }
    losses = _judged(dense, [by_order.depths for by_order in repaired.values()], _token_ids(judged))
    by_order = {name: _order(of, orders[name], losses) for name, of in repaired.items()}
    return {
        "num_blocks": num_blocks(dense.model),
        "train": {domain: list(ids.shape) for domain, ids in train.items()},
        "selection": {domain: list(ids.shape) for domain, ids in selection.items()},
        "held_out": {domain: list(of.token_ids.shape) for domain, of in judged.items()},
        "dtype": str(dense.model.dtype).removeprefix("torch."),
        "dense": {domain: _of(of) for domain, of in losses.dense.items()},
        "orders": by_order,
        **facts("repair"),
    }


@dataclass(frozen=True)
class _Repaired:
    seconds: float
    numbers: Sequence[int]
    depths: Sequence[RepairedDepth]


@dataclass(frozen=True)
class _Judged:
    """Losses on held-out windows by domain: of the dense model, and of each depth and method."""

    dense: Mapping[str, Losses]
    pruned: Mapping[tuple[Blocks, Method], Mapping[str, Losses]]


def _parsed(text: str, least: int) -> tuple[str, Order | None]:
    """The name and the order that was given with it, if any."""
    name, _, blocks = text.partition("=")
    if not blocks:
        if name not in [*Metric]:
            raise typer.BadParameter(f"--order {text}: expected {_METRICS}, or NAME=14,26,...")
        return name, None
    removed = tuple(int(block) for block in blocks.split(","))
    if len(removed) < least:
        raise typer.BadParameter(
            f"--order {text} has {len(removed)} blocks, and {least} are to be removed: give a "
            "longer order or smaller depths"
        )
    return name, Order(removed)


def _searched(dense: DenseModel, spec: PruneSpec, name: str) -> Order:
    """The order that the search of this name finds, as a job finds it."""
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    began_s = time.perf_counter()
    removals = search(replace(spec, metric=Metric(name)), dense, windows, Observer(), SearchState())
    seconds = time.perf_counter() - began_s
    removed = tuple(removal.block for removal in removals)
    return Order(removed, seconds, list(windows.token_ids.shape))


def _calibration(text: Sequence[Path] | None, num_samples: int, seqlen: int) -> Calibration:
    if not text:
        return default_calibration(num_samples=num_samples, seqlen=seqlen)
    sources = tuple(
        CalibrationSpec(Dataset.FILE, num_samples=num_samples, seqlen=seqlen, path=str(file))
        for file in text
    )
    return CalibrationMix(sources, (1.0,) * len(sources))


def _token_ids(windows: Mapping[str, Windows]) -> dict[str, torch.Tensor]:
    return {domain: of_domain.token_ids for domain, of_domain in windows.items()}


def _repaired(
    dense: DenseModel, removed: Blocks, numbers: Sequence[int], text: RepairText
) -> _Repaired:
    keeps = [kept(num_blocks(dense.model), removed[:number]) for number in numbers]
    began_s = time.perf_counter()
    depths = repair_depths(dense.visited(), keeps, text, batch_tokens=dense.resources.batch_tokens)
    return _Repaired(time.perf_counter() - began_s, numbers, depths)


def _judged(
    dense: DenseModel, orders: Sequence[Sequence[RepairedDepth]], windows: dict[str, torch.Tensor]
) -> _Judged:
    models = {
        (depth.keep, method): PrunedModel(
            depth.keep, folded(dense.model, depth.keep, repaired, dense.read)
        )
        for depths in orders
        for depth in depths
        for method, repaired in depth.tried.items()
    }
    everything = PrunedModel(tuple(range(num_blocks(dense.model))))
    by_domain: list[dict[str, Losses]] = [{} for _ in range(len(models) + 1)]
    for domain, token_ids in windows.items():
        by_model = pruned_losses(dense, [everything, *models.values()], token_ids)
        for of, losses in zip(by_domain, by_model, strict=True):
            of[domain] = losses
    return _Judged(by_domain[0], dict(zip(models, by_domain[1:], strict=True)))


def _order(repaired: _Repaired, order: Order, losses: _Judged) -> dict[str, Any]:
    return {
        "removed": list(order.removed),
        "seconds": repaired.seconds,
        "search": None if order.seconds is None else asdict(order),
        "depths": [
            {"num_removed": number, **_depth(depth, losses)}
            for number, depth in zip(repaired.numbers, repaired.depths, strict=True)
        ],
    }


def _depth(depth: RepairedDepth, losses: _Judged) -> dict[str, Any]:
    raw = losses.pruned[depth.keep, Method.NONE]
    methods = {
        method.value: {
            "bytes": sum(tensor.nbytes for tensor in repaired.tensors.values()),
            "penalties": {str(block): each for block, each in repaired.penalties.items()},
            "domains": {
                domain: _came_back(losses.dense[domain], raw[domain], each)
                for domain, each in losses.pruned[depth.keep, method].items()
            },
        }
        for method, repaired in depth.tried.items()
    }
    return {"auto": choose(depth).method.value, "methods": methods}


def _came_back(dense: Losses, raw: Losses, losses: Losses) -> dict[str, float]:
    """``came_back`` and its standard error are shares of the nats that pruning has lost."""
    lost = fmean(raw) - fmean(dense)
    back = paired_gaps(raw, losses)
    error = standard_error(back) if len(back) > 1 else 0.0
    share = {"came_back": fmean(back) / lost, "standard_error": error / abs(lost)}
    return {**_of(losses), **share}


def _of(losses: Losses) -> dict[str, float]:
    return {"loss": fmean(losses), "perplexity": math.exp(fmean(losses))}


if __name__ == "__main__":
    typer.run(main)
