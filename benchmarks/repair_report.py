"""Report of the repair benchmark: a table for each removal order, and a picture of its curves."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pruning.checkpoints.trajectory_plot import STYLE, compact, log_ticks

if TYPE_CHECKING:  # matplotlib is imported late: it looks for fonts and writes a cache
    from matplotlib.axes import Axes

_NAMES: Mapping[str, str] = MappingProxyType({"none": "raw", "scale": "scale", "ridge": "ridge"})
_LOOKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "auto": {"color": "#F0C040", "lw": 7, "alpha": 0.7},  # below the method that it takes
        "none": {"color": "#707070", "marker": "o", "ls": "--"},
        "scale": {"color": "#0072B2", "marker": "s"},
        "ridge": {"color": "#C44E00", "marker": "^"},
    }
)
_WIDTH, _HEIGHT = 3.9, 3.2  # inches of a panel


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write the JSON file ``out``, and beside it Markdown and PNG, and print the tables."""
    out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    plot(report, out.with_suffix(".png"))
    for name, order in report["orders"].items():
        headings, lines = _lines(report, order)
        table = Table(*headings, title=f"{name}: perplexity on held-out text")
        for line in lines:
            table.add_row(*line)
        Console().print(table)


def markdown(report: Mapping[str, Any]) -> str:
    parts = [_introduction(report)]
    for name, order in report["orders"].items():
        headings, lines = _lines(report, order)
        rows = [headings, ["--:", "---", *["--:"] * (len(headings) - 2)], *lines]
        parts.append(
            f"## {name}\n\nBlocks go in the order {order['removed']}. All depths were repaired in "
            f"{order['seconds']:.1f} s{_share_of_search(report, order)}."
        )
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _introduction(report: Mapping[str, Any]) -> str:
    text = ", ".join(
        f"{of} {_windows(report[key])}"
        for key, of in (
            ("train", "fitted on"),
            ("selection", "chosen on"),
            ("held_out", "judged on"),
        )
    )
    return (
        "# Repair in closed form\n\nPerplexity on held-out windows by domain, and the share of the "
        f"lost nats that came back. Repairs are {text}, in {report['dtype']}. Intervals are 95 %, "
        "over windows. MB are the tensors that differ from the dense model. Machine and command "
        "are in the JSON file of the same name."
    )


def _windows(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{number} × {seqlen} {domain}" for domain, (number, seqlen) in shapes.items())


def _share_of_search(report: Mapping[str, Any], order: Mapping[str, Any]) -> str:
    """What the search took, and the share if it had windows as long as those of the repair."""
    if (search := order["search"]) is None:
        return ""
    (number, seqlen), (_, repair_seqlen) = search["windows"], next(iter(report["train"].values()))
    share = (
        f"{100 * order['seconds'] / search['seconds']:.0f} % of " if seqlen == repair_seqlen else ""
    )
    return (
        f", {share}the {search['seconds']:.1f} s of the search for {len(search['removed'])} blocks "
        f"on {number} × {seqlen} tokens"
    )


def _lines(
    report: Mapping[str, Any], order: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line for each depth and method."""
    domains = list(report["dense"])
    headings = ["removed", "repair", *domains, *(f"{domain} came back" for domain in domains), "MB"]
    dense = [f"{found['perplexity']:.2f}" for found in report["dense"].values()]
    lines = [["0", "", *dense, *[""] * (len(domains) + 1)]]
    for depth in order["depths"]:
        for method, found in depth["methods"].items():
            measured = [found["domains"][domain] for domain in domains]
            shares = [
                f"{100 * m['came_back']:.0f} ± {196 * m['standard_error']:.0f} %" for m in measured
            ]
            chosen = " (auto)" if method == depth["auto"] else ""
            lines.append(
                [
                    str(depth["num_removed"]),
                    f"{_NAMES[method]}{chosen}",
                    *(f"{m['perplexity']:.2f}" for m in measured),
                    *(shares if method != "none" else [""] * len(domains)),
                    f"{found['bytes'] / 1e6:.1f}",
                ]
            )
    return headings, lines


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Perplexity against removed blocks: a row for each order, a panel for each domain."""
    from matplotlib import style  # noqa: PLC0415 - as above
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    domains, orders = list(report["dense"]), report["orders"]
    size = (_WIDTH * len(domains), _HEIGHT * len(orders) + 0.4)
    with style.context(["default", dict(STYLE)]):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(orders), len(domains), squeeze=False, sharex=True)
        for row, (name, order) in zip(panels, orders.items(), strict=True):
            for axes, domain in zip(row, domains, strict=True):
                _draw(axes, report, order, domain)
                axes.set_title(domain if len(orders) == 1 else f"{domain}, order {name}", size=10)
            row[0].set_ylabel("perplexity, logarithmic")
        for axes in panels[-1]:
            axes.set_xlabel("removed blocks")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.savefig(path)


def _draw(axes: "Axes", report: Mapping[str, Any], order: Mapping[str, Any], domain: str) -> None:
    numbers = [0, *(depth["num_removed"] for depth in order["depths"])]
    for method, label, values in _curves(report, order, domain):
        axes.plot(numbers, values, label=label, **_LOOKS[method])
    all_curves = [_curves(report, each, domain) for each in report["orders"].values()]
    drawn = [value for curves in all_curves for *_, values in curves for value in values]
    low, high = min(drawn) / 1.1, max(drawn) * 1.1  # equal in all panels of a domain
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks(_ticks(low, high))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(compact)
    axes.set_xticks(numbers)


def _ticks(low: float, high: float) -> list[float]:
    """At least four ticks where one, two and five times the powers of ten are fewer."""
    ticks = log_ticks(low, high)
    if len(ticks) >= 4:
        return ticks
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    denser = [factor * 10.0**power for power in powers for factor in (1, 1.5, 2, 3, 4, 5, 7)]
    return [tick for tick in denser if low <= tick <= high]


def _curves(
    report: Mapping[str, Any], order: Mapping[str, Any], domain: str
) -> Iterator[tuple[str, str, list[float]]]:
    """Method, label, and the perplexity of the dense model and at each depth."""
    depths, dense = order["depths"], report["dense"][domain]["perplexity"]
    for method, label in (("auto", "auto: chosen"), *_NAMES.items()):
        if method == "auto" or method in depths[0]["methods"]:
            chosen = [depth["auto"] if method == "auto" else method for depth in depths]
            pairs = zip(depths, chosen, strict=True)
            found = [depth["methods"][of]["domains"][domain]["perplexity"] for depth, of in pairs]
            yield method, label, [dense, *found]
