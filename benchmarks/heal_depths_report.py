"""Report of the benchmark of healings of all depths, as Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.reports import table

Shares = Mapping[str, Mapping[str, float]]


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
    domains: Shares = report["shares"]
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
        table(
            ["model", *domains, "probe"],
            [
                [name, *(f"{of[name]:.0%}" for of in domains.values()), _probe(report, name)]
                for name in names
            ],
        ),
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
