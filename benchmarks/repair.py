"""What repair gives back: losses without, with each repair, and with the chosen one, by domain and
depth, on text that took no part in any fit or choice.

The share that comes back is (pruned - repaired) / (pruned - dense), in nats per token.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.bench.machine import machine
from app.settings import check_variables
from pruning.config import Settings
from pruning.data.windows import all_windows
from pruning.models.blocks import num_blocks, view
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.loss import last_hidden, window_losses
from pruning.models.memory import BATCH_TOKENS
from pruning.models.store import ModelStore, load, set_up_torch
from pruning.removal import Losses, kept
from pruning.repair.choose import choose
from pruning.repair.folding import folded
from pruning.repair.repair import RepairedDepth, RepairText, ResidentModel, repair_depths

_Texts = list[str]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, table and picture.")],
    train: Annotated[_Texts, typer.Option(help="DOMAIN=FILE to fit and to choose on; repeat it.")],
    held_out: Annotated[_Texts, typer.Option(help="DOMAIN=FILE to evaluate on; repeat it.")],
    order: Annotated[str, typer.Option(help="Blocks in the order in which they go.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "1,2,3,4,5,6",
    num_train: Annotated[int, typer.Option(help="Windows of each domain to fit on.")] = 32,
    num_selection: Annotated[int, typer.Option(help="Windows of each to choose by.")] = 8,
    num_held_out: Annotated[int, typer.Option(help="Windows of each to evaluate on.")] = 8,
    seqlen: int = 512,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    set_up_torch()
    check_variables()
    settings = Settings()
    if model == NAME:
        ensure_demo_model(settings.models_dir)
    loaded = load(ModelStore(settings.models_dir, allow_paths=True).path(model), dtype="float32")
    texts = evenly_spread(loaded.tokenizer, train, num_train + num_selection, seqlen)
    text = RepairText(
        {domain: windows[num_selection:] for domain, windows in texts.items()},
        {domain: windows[:num_selection] for domain, windows in texts.items()},
    )
    judged = evenly_spread(loaded.tokenizer, held_out, num_held_out, seqlen)
    removed = [int(block) for block in order.split(",")]
    keeps = [kept(num_blocks(loaded.model), removed[: int(k)]) for k in depths.split(",")]
    report: dict[str, Any] = {
        "order": removed,
        "train": {domain: list(windows.shape) for domain, windows in text.train.items()},
        "selection": {domain: list(windows.shape) for domain, windows in text.selection.items()},
        "held_out": {domain: list(windows.shape) for domain, windows in judged.items()},
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.repair", *sys.argv[1:]]),
    }
    began_s = time.perf_counter()
    repaired = repair_depths(ResidentModel(loaded.model), keeps, text, batch_tokens=BATCH_TOKENS)
    report["seconds"] = round(time.perf_counter() - began_s, 1)
    report["dense"] = {
        domain: _of(_losses(loaded.model, windows)) for domain, windows in judged.items()
    }
    report["depths"] = [_measured(loaded.model, depth, judged, report) for depth in repaired]
    out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(_markdown(report))
    _plot(report, out.with_suffix(".png"))
    _show(report)


def evenly_spread(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], number: int, seqlen: int
) -> dict[str, torch.Tensor]:
    """Token ids [number, seqlen] of each DOMAIN=FILE, spread evenly over the file."""
    found = {}
    for given in texts:
        domain, _, file = given.partition("=")
        windows = all_windows(Path(file).read_text(encoding="utf-8"), seqlen, tokenizer)
        if len(windows) < number:
            raise typer.BadParameter(
                f"{file} has {len(windows)} windows of {seqlen} tokens, and {number} are needed: "
                "give a longer text or ask for fewer windows"
            )
        found[domain] = windows[[at * len(windows) // number for at in range(number)]]
    return found


@torch.no_grad()
def _losses(model: PreTrainedModel, windows: torch.Tensor) -> Losses:
    """Nats per predicted token of each window."""
    batches = torch.split(windows, max(1, BATCH_TOKENS // windows.shape[1]))
    found: list[float] = []
    for batch in batches:
        found += window_losses(model, last_hidden(model, batch), batch).tolist()
    return found


def _of(losses: Losses) -> dict[str, float]:
    return {"loss": fmean(losses), "perplexity": math.exp(fmean(losses))}


def _measured(
    model: PreTrainedModel,
    depth: RepairedDepth,
    judged: Mapping[str, torch.Tensor],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Losses of each method on the held-out windows; those without repair come first."""
    raw: dict[str, Losses] = {}
    methods: dict[str, Any] = {}
    for method, repaired in depth.tried.items():
        tensors = folded(model, depth.keep, repaired)
        pruned = view(model, depth.keep, tensors)
        domains = {}
        for domain, windows in judged.items():
            losses = _losses(pruned, windows)
            raw.setdefault(domain, losses)
            lost = fmean(raw[domain]) - report["dense"][domain]["loss"]
            differences = [
                before - after for before, after in zip(raw[domain], losses, strict=True)
            ]
            error = stdev(differences) / math.sqrt(len(differences)) if len(losses) > 1 else 0.0
            domains[domain] = {
                **_of(losses),
                "came_back": fmean(differences) / lost,
                "standard_error": error / abs(lost),
            }
        own_bytes = sum(tensor.nbytes for tensor in repaired.tensors.values())
        penalties = {str(cut.before): found for cut, found in repaired.penalties.items()}
        methods[method.value] = {"bytes": own_bytes, "penalties": penalties, "domains": domains}
    return {
        "num_removed": num_blocks(model) - len(depth.keep),
        "methods": methods,
        "auto": choose(depth).method.value,
    }


def _lines(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line for each depth and method."""
    domains = list(report["dense"])
    headings = ["removed", "repair", *domains, *(f"{domain} came back" for domain in domains)]
    lines = [["0", "", *(f"{found['perplexity']:.2f}" for found in report["dense"].values())]]
    lines[0] += ["" for _ in domains]
    for depth in report["depths"]:
        for method, found in depth["methods"].items():
            chosen = " (auto)" if method == depth["auto"] else ""
            measured = [found["domains"][domain] for domain in domains]
            shares = [
                f"{100 * m['came_back']:.0f} ± {196 * m['standard_error']:.0f} %" for m in measured
            ]
            lines.append(
                [
                    str(depth["num_removed"]),
                    f"{method}{chosen}",
                    *(f"{m['perplexity']:.2f}" for m in measured),
                    *(shares if method != "none" else ["" for _ in domains]),
                ]
            )
    return headings, lines


def _markdown(report: Mapping[str, Any]) -> str:
    headings, lines = _lines(report)
    rows = [headings, ["--:", "---", *["--:"] * (len(headings) - 2)], *lines]
    text = (
        f"# Repair in closed form\n\nBlocks go in the order {report['order']}. Perplexity on "
        f"held-out windows by domain {report['held_out']}; fitted on {report['train']}, chosen on "
        f"{report['selection']}. Intervals are 95 %, over windows. All depths were repaired in "
        f"{report['seconds']} s. Machine and command are in the JSON file of the same name.\n\n"
    )
    return text + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _plot(report: Mapping[str, Any], path: Path) -> None:
    """Perplexity against removed blocks, a panel for each domain and a line for each repair."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - looks for fonts when it is imported

    domains = list(report["dense"])
    figure = Figure(figsize=(4 * len(domains), 3.4), layout="constrained")
    numbers = [0, *(depth["num_removed"] for depth in report["depths"])]
    for at, domain in enumerate(domains, start=1):
        axes = figure.add_subplot(1, len(domains), at)
        for method in report["depths"][0]["methods"]:
            found = [depth["methods"][method]["domains"][domain] for depth in report["depths"]]
            values = [report["dense"][domain]["perplexity"], *(m["perplexity"] for m in found)]
            axes.plot(numbers, values, marker="o", label=f"repair: {method}")
        axes.set(title=domain, xlabel="blocks removed", ylabel="perplexity", yscale="log")
        axes.legend()
    figure.savefig(path, dpi=120)


def _show(report: Mapping[str, Any]) -> None:
    headings, lines = _lines(report)
    table = Table(*headings, title="perplexity on held-out text")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
