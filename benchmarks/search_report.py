"""Report of a search benchmark: results and cost of its modes side by side."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.modes import Mode, Round
from pruning.removal import Removal


def report(modes: Mapping[str, Mode], reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reports by mode. A reference has ``removal_order`` and ``scores``."""
    return {name: _mode_report(mode, modes, reference) for name, mode in modes.items()}


def _mode_report(
    mode: Mode, modes: Mapping[str, Mode], reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    plain, cost = modes.get("plain"), mode.cost
    figures: dict[str, Any] = {
        "order": mode.order,
        "losses": [removal.loss for removal in mode.removals],
        "dense_loss": mode.dense_loss,
        "seconds": round(cost.seconds, 3),
        "peak_weight_bytes": mode.peak_weight_bytes,
        "peak_state_bytes": mode.scorer.peak_state_bytes,
        "block_passes": round(cost.block_passes, 2),
        "window_evaluations": round(cost.window_evaluations),
        "order_equal_to_plain": _same(mode, plain),
        "order_equal_to_exact": _same(mode, modes.get("exact")),
        "order_equal_to_reference": None,
        "speedup_vs_plain": round(plain.cost.seconds / cost.seconds, 3) if plain else None,
        "largest_loss_difference_to_plain": _difference(mode, plain),
        "largest_loss_difference_to_exact": _difference(mode, modes.get("exact")),
        "largest_loss_difference_to_reference": None,
        "dense_seconds": round(mode.dense.seconds, 3),
        "rounds": [_round_report(each) for each in mode.rounds],
    }
    if reference:
        figures["order_equal_to_reference"] = (
            mode.order == reference["removal_order"][: len(mode.order)]
        )
        figures["largest_loss_difference_to_reference"] = _to_reference(mode, reference)
    return figures


def _round_report(each: Round) -> dict[str, Any]:
    removal = each.removal
    return {
        "seconds": round(each.cost.seconds, 3),
        "block_passes": round(each.cost.block_passes, 2),
        "runner_up": removal.runner_up,
        "margin": removal.margin,
        "margin_error": removal.margin_error,
        "scores": removal.scores,
        "num_windows": removal.num_windows,
    }


def _same(mode: Mode, other: Mode | None) -> bool | None:
    return None if other is None else mode.order == other.order


def _difference(mode: Mode, other: Mode | None) -> float | None:
    """Largest difference between losses of the same kept blocks over all windows."""
    if other is None:
        return None
    largest = 0.0
    for step, (ours, theirs) in enumerate(zip(mode.removals, other.removals, strict=False)):
        if mode.order[:step] != other.order[:step]:
            break
        in_both = _complete(ours).keys() & _complete(theirs).keys()
        gaps = [abs(ours.scores[block] - theirs.scores[block]) for block in in_both]
        largest = max([largest, *gaps])
    return largest


def _to_reference(mode: Mode, reference: Mapping[str, Any]) -> float:
    largest = 0.0
    for removal, scores in zip(mode.removals, reference["scores"], strict=False):
        gaps = [abs(loss - float(scores[str(b)])) for b, loss in _complete(removal).items()]
        largest = max([largest, *gaps])
        if removal.block != reference["removal_order"][removal.step - 1]:
            break
    return largest


def _complete(removal: Removal) -> dict[int, float]:
    """Scores computed on all windows."""
    total = max(removal.num_windows.values())
    return {b: loss for b, loss in removal.scores.items() if removal.num_windows[b] == total}


_ROWS = {
    "seconds": "seconds",
    "speedup_vs_plain": "speedup over plain",
    "block_passes": "block passes",
    "window_evaluations": "window evaluations",
    "peak_weight_bytes": "peak weights, MiB",
    "peak_state_bytes": "peak states, MiB",
    "order_equal_to_plain": "order equal to plain",
    "order_equal_to_exact": "order equal to exact",
    "order_equal_to_reference": "order equal to the reference",
    "largest_loss_difference_to_reference": "largest loss difference to the reference",
}


def show(modes: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print a column for every mode, and the removal orders."""
    table = Table("", *modes)
    for key, heading in _ROWS.items():
        table.add_row(heading, *(_cell(key, of_mode[key]) for of_mode in modes.values()))
    console.print(table)
    for name, of_mode in modes.items():
        console.print(f"{name}: {of_mode['order']}")


def _cell(key: str, value: bool | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value / 2**20:.1f}" if key.endswith("_bytes") else f"{value:.6g}"
