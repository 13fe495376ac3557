"""The rounds of a job's search as a table that fits into 80 columns, with its ties in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from app.terminal import filled, plain_table
from pruning.checkpoints.trajectory import NONE, Margin, margin_text, ties

_COLUMNS = ("removed block", "loss", "margin", "before")


def print_rounds(
    console: Console, job: Mapping[str, Any], events: Iterable[Mapping[str, Any]]
) -> None:
    """Print the loss after each removal, and by how much it was decided.

    ``events`` are those of the job: only they have the margins. Nothing without removals.
    """
    decided = {
        data["step"]: data for data in (event["data"] for event in events) if "block" in data
    }
    rounds = [
        {**decided.get(step, {}), "block": block, "loss": loss}
        for step, (block, loss) in enumerate(
            zip(job["removed_blocks"], job["losses"], strict=False), start=1
        )
    ]
    if not rounds:
        return
    console.print()
    console.print(_table(job["dense_loss"], rounds))
    console.print("loss: nats per token on the calibration text")
    for text in ties([_margin(each) for each in rounds], len(rounds)):
        console.print(text, markup=False)


def _table(dense_loss: float | None, rounds: Sequence[Mapping[str, Any]]) -> Table:
    dense = [] if dense_loss is None else [("dense", f"{dense_loss:.4f}", "", "")]
    rows = [*dense, *map(_cells, rounds)]
    return filled(plain_table("rounds of the search"), _COLUMNS, rows, ["margin"])


def _cells(one_round: Mapping[str, Any]) -> Iterator[str]:
    yield str(one_round["block"])
    yield f"{one_round['loss']:.4f}"
    margin = margin_text(_margin(one_round))
    yield "" if margin == NONE else margin
    runner_up = one_round.get("runner_up")
    yield "" if runner_up is None else str(runner_up)


def _margin(one_round: Mapping[str, Any]) -> Margin:
    return one_round.get("margin"), one_round.get("margin_error")
