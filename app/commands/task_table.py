"""The tasks of a job on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from app.terminal import filled, plain_table
from pruning.checkpoints.task_table import task_legend, task_sentences, task_table
from pruning.evaluation.task_shares import TaskShares
from pruning.records import read_record


def shares_in(view: Mapping[str, Any]) -> TaskShares:
    """Those in a response of the service."""
    return read_record(TaskShares, view)


def print_tasks(console: Console, shares: TaskShares | None) -> None:
    """A line for each task, the worst one first. Nothing without any."""
    if shares is None:
        return
    console.print()
    console.print(filled(plain_table("tasks"), *task_table(shares)))
    for text in (*task_sentences(shares), *task_legend()):
        console.print(text, markup=False)
