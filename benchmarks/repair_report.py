"""Report of the repair benchmark: a table for each removal order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import reports


def write(report: Mapping[str, Any], out: Path) -> None:
    """Write the JSON file ``out``, and beside it Markdown, and print that."""
    text = markdown(report)
    reports.write(report, out, text)
    Console().print(text, markup=False, soft_wrap=True)


def markdown(report: Mapping[str, Any]) -> str:
    parts = [_introduction(report)]
    for name, order in report["orders"].items():
        headings, lines = _lines(report, order)
        parts.append(
            f"## {name}\n\nBlocks go in the order {order['removed']}. All depths were repaired in "
            f"{order['seconds']:.1f} s{_share_of_search(report, order)}."
        )
        parts.append(reports.table(headings, lines, 2).rstrip())
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
    dense = [f"{result['perplexity']:.2f}" for result in report["dense"].values()]
    lines = [["0", "", *dense, *[""] * (len(domains) + 1)]]
    for depth in order["depths"]:
        for method, result in depth["methods"].items():
            measured = [result["domains"][domain] for domain in domains]
            shares = [
                f"{100 * m['came_back']:.0f} ± {196 * m['standard_error']:.0f} %" for m in measured
            ]
            chosen = " (auto)" if method == depth["auto"] else ""
            lines.append(
                [
                    str(depth["num_removed"]),
                    f"{'raw' if method == 'none' else method}{chosen}",
                    *(f"{m['perplexity']:.2f}" for m in measured),
                    *(shares if method != "none" else [""] * len(domains)),
                    f"{result['bytes'] / 1e6:.1f}",
                ]
            )
    return headings, lines
