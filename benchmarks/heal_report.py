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
_PROBE_HEADINGS = ("model", "probe, at most 1", "above the repaired model")
_HEADINGS = ("domain", "model", "perplexity", "nats above dense", "came back")


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write the JSON file ``out``, and beside it Markdown and PNG, and print the tables."""
    out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    if report["depths"]:
        plot(report, out.with_suffix(".png"))
    for depth in report["depths"]:
        table = Table(*_HEADINGS, title=f"without {depth['num_removed']} blocks")
        for line in lines(depth):
            table.add_row(*line)
        Console().print(table)
        probe = Table(*_PROBE_HEADINGS)
        for row in probe_rows(depth):
            probe.add_row(*row)
        Console().print(probe, _effort(depth), _serving(depth))


def markdown(report: Mapping[str, Any]) -> str:
    parts = [_INTRODUCTION]
    for depth in report["depths"]:
        rows = [_HEADINGS, ["---", "---", "--:", "--:", "--:"], *lines(depth)]
        parts.append(f"## Without {depth['num_removed']} blocks\n\n{_effort(depth)}")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        rows = [_PROBE_HEADINGS, ["---", "--:", "--:"], *probe_rows(depth)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        parts.append(_serving(depth))
    if report["shapes"]:
        parts.append("## Published shapes, random weights")
        parts += [_shape(shape) for shape in report["shapes"]]
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


def probe_rows(depth: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The rows of the table of the probe. Differences to the repaired model are paired."""
    for name, of in depth["probe"].items():
        above = f"{of['over_repaired']:+.3f} ± {of['standard_error']:.3f}"
        yield name, f"{of['score']:.3f}", "" if name == "repaired" else above


def plot(report: Mapping[str, Any], out: Path) -> None:
    """Divergence from the dense model on held-out text over tokens, a line for each training."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - looks for fonts and writes a cache

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for depth in report["depths"]:
        for name, run in depth["runs"].items():
            checks = run["checks"]
            tokens = [check["num_tokens"] / 1000 for check in checks]
            if name == "control" and depth is not report["depths"][0]:
                continue  # all depths have the same one
            label = name if name == "control" else f"{name}, {depth['num_removed']} blocks fewer"
            axes.plot(tokens, [check["loss"] for check in checks], marker="o", ms=3, label=label)
    axes.set_xlabel("thousand tokens")
    axes.set_ylabel("nats per token from the dense model")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(out, dpi=150)


def _effort(depth: Mapping[str, Any]) -> str:
    run = depth["runs"]["healed"]
    pace = run["num_tokens"] / run["seconds"]
    return (
        f"{run['num_tokens']:,} tokens in {run['seconds']:.0f} s ({pace:.0f} per second), the best "
        f"step after {run['best']['num_tokens']:,}. {_memory(run['bytes'])}"
    )


def _memory(sizes: Mapping[str, float]) -> str:
    needed = ", ".join(
        f"{name.replace('_', ' ')} {size / 1e6:.0f} MB"
        for name, size in sizes.items()
        if name not in {"peak", "ratio"}
    )
    return (
        f"Memory: {needed}; the peak of the first steps was {sizes['peak'] / 1e6:.0f} MB, "
        f"{sizes['ratio']:.2f} of all of these."
    )


def _serving(depth: Mapping[str, Any]) -> str:
    """What an adapter beside the weights costs in a decode step, against merged weights."""
    serving = depth["serving"]
    merged, unmerged = (serving["bytes"][name] / 1e6 for name in ("merged", "unmerged"))
    ratios = ", ".join(
        f"{of['unmerged_over_merged']:.2f} at {of['sequences']}" for of in serving["steps"]
    )
    return (
        f"Served unmerged, the adapter takes {unmerged:.0f} MB instead of {merged:.0f} MB, and a "
        f"decode step takes this many times as long: {ratios} sequences."
    )


def _shape(shape: Mapping[str, Any]) -> str:
    return (
        f"{shape['shape']}, {shape['num_kept']} blocks kept, steps of {shape['batch_tokens']:,} "
        f"tokens: {shape['tokens_per_s']:.0f} tokens per second. {_memory(shape['bytes'])}"
    )
