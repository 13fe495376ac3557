"""Report of the healing benchmark: a table for each depth, and a picture of loss over tokens."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_INTRODUCTION = """\
# Healing

Perplexity on held-out windows by domain, and the share of the lost nats that came back. ± is one
standard error over windows, from differences to the dense model. Settings, machine and command are
in the JSON file of the same name."""
_HEADINGS = ("domain", "model", "perplexity", "nats above dense", "came back")


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write the JSON file ``out``, and beside it Markdown and PNG, and print the tables."""
    out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    plot(report, out.with_suffix(".png"))
    for depth in report["depths"]:
        table = Table(*_HEADINGS, title=f"without {depth['num_removed']} blocks")
        for line in lines(depth):
            table.add_row(*line)
        Console().print(table)


def markdown(report: Mapping[str, Any]) -> str:
    parts = [_INTRODUCTION]
    for depth in report["depths"]:
        rows = [_HEADINGS, ["---", "---", "--:", "--:", "--:"], *lines(depth)]
        parts.append(f"## Without {depth['num_removed']} blocks\n\n{_effort(depth)}")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def lines(depth: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The rows of the table of one depth."""
    for domain, models in depth["domains"].items():
        dense, raw = models["dense"]["loss"], models["raw"]["loss"]
        for name, of in models.items():
            lost = of["loss"] - dense
            share = (raw - of["loss"]) / (raw - dense) if name in {"repaired", "healed"} else None
            yield (
                domain,
                name,
                f"{math.exp(of['loss']):.2f}",
                "" if name == "dense" else f"{lost:.3f} ± {of['standard_error'] or 0:.3f}",
                "" if share is None else f"{share:.0%}",
            )


def plot(report: Mapping[str, Any], out: Path) -> None:
    """Divergence from the dense model on held-out text over tokens, a line for each training."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - looks for fonts and writes a cache

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for depth in report["depths"]:
        for name, run in depth["runs"].items():
            checks = run["checks"]
            tokens = [check["num_tokens"] / 1000 for check in checks]
            label = f"{name}, {depth['num_removed']} blocks fewer"
            axes.plot(tokens, [check["loss"] for check in checks], marker="o", ms=3, label=label)
    axes.set_xlabel("thousand tokens")
    axes.set_ylabel("nats per token from the dense model")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(out, dpi=150)


def _effort(depth: Mapping[str, Any]) -> str:
    run, sizes = depth["runs"]["healed"], depth["bytes"]
    pace = run["num_tokens"] / run["seconds"]
    return (
        f"{run['num_tokens']:,} tokens in {run['seconds']:.0f} s ({pace:.0f} per second); weights "
        f"{_mb(sizes['weights'])}, adapters {_mb(run['adapter_bytes'])}, optimiser "
        f"{_mb(run['optimizer_bytes'])}, peak of the process {_mb(sizes['peak_of_process'])}."
    )


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
