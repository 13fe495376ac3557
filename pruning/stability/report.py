"""The stability report as sentences, tables and JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pruning.checkpoints.trajectory import NONE, Cells, short
from pruning.plural import counted
from pruning.stability.agreement import Depth, Stability

_MAX_WINDOW_OVERLAP = 0.25  # above it, samples are too similar to tell


def to_wire(report: Stability) -> dict[str, Any]:
    """Return the report as JSON data, without digests of windows and scores of candidates."""
    data = asdict(report)
    for run in data["runs"]:
        del run["windows"]
        for removal in run["removals"]:
            del removal["scores"], removal["num_windows"]
    return {"conclusions": list(conclusions(report)), **data}


def conclusions(report: Stability) -> Iterator[str]:
    """Yield what the numbers mean, the most important first."""
    last, num_runs = report.depths[-1], len(report.runs)
    yield _headline(report, last, num_runs)
    if num_margins := sum(depth.num_margins for depth in report.depths):
        num_close = sum(depth.num_close for depth in report.depths)
        yield (
            f"In {num_close} of {counted(num_margins, 'round')} the runner-up was within "
            "2 standard errors of the removed block."
        )
    for text, spread in last.perplexities.items():
        dense, more = report.dense_perplexities[text], spread.highest / spread.lowest - 1
        yield (
            f"On held-out text of {text}, perplexity without "
            f"{counted(last.num_removed, 'block')} is "
            f"{short(spread.lowest)} to {short(spread.highest)} (dense {short(dense)}): the sample "
            f"makes a difference of up to {more:.1%}."
        )
    within, across = last.overlap_within_text, last.overlap_across_texts
    if within is not None and across is not None:
        yield (
            f"The overlap of runs on one text is {within:.2f}, on different texts {across:.2f}: "
            + (
                "the text matters more than the seed."
                if across < within
                else "the text matters no more than the seed."
            )
        )
    if report.window_overlap is not None and report.window_overlap > _MAX_WINDOW_OVERLAP:
        yield (
            f"Two samples of one text share {report.window_overlap:.0%} of their windows, "
            "so their agreement means little: use more text or fewer windows."
        )


def _headline(report: Stability, last: Depth, num_runs: int) -> str:
    if report.is_choice_in_noise:
        shared = ", ".join(map(str, last.shared_by_all)) or "none"
        return (
            f"The choice of {counted(last.num_removed, 'block')} is within the noise: "
            f"{num_runs} runs removed "
            f"{last.num_sets} different sets, with a mean overlap of {last.overlap:.2f} "
            f"({last.overlap_by_chance:.2f} by chance). Blocks removed in all runs: {shared}."
        )
    if last.num_orders > 1:
        return (
            f"The order is within the noise, the choice is not: {num_runs} runs removed the same "
            f"{last.num_removed} blocks, in {last.num_orders} different orders."
        )
    if report.is_order_in_noise:
        return (
            f"All {num_runs} runs removed the same blocks in the same order, but some margins are "
            "within the noise: another sample may change the order."
        )
    return (
        f"The order is outside the noise: all {num_runs} runs removed the same blocks in the same "
        "order, and no margin is within the noise."
    )


def block_table(report: Stability) -> tuple[Cells, list[Cells]]:
    """Return the headings, and a line for each block that any run removed."""
    num_runs = len(report.runs)
    lines: list[Cells] = [
        (str(picked.block), f"{picked.num_runs} of {num_runs}", " ".join(map(str, picked.steps)))
        for picked in report.picked
    ]
    return ("block", "removed in", "as removal"), lines


def depth_table(report: Stability) -> tuple[Cells, list[Cells]]:
    """Return the headings, and a line for each number of removed blocks."""
    texts = list(report.dense_perplexities)
    spreads = [f"perplexity, {text}" if len(texts) > 1 else "perplexity" for text in texts]
    headings = ("removed", "sets", "overlap", "lowest", "by chance", "close", *spreads)
    return headings, [_depth_line(depth, texts) for depth in report.depths]


def _depth_line(depth: Depth, texts: Sequence[str]) -> Cells:
    close = f"{depth.num_close} of {depth.num_margins}" if depth.num_margins else NONE
    spreads = [depth.perplexities[text] for text in texts]
    return (
        str(depth.num_removed),
        str(depth.num_sets),
        _share(depth.overlap),
        _share(depth.lowest_overlap),
        _share(depth.overlap_by_chance),
        close,
        *(f"{short(s.lowest)} to {short(s.highest)}" for s in spreads),
    )


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
