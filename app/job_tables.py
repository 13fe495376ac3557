"""Jobs on the terminal, as the API describes them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_TIMES = ("created_at", "started_at", "finished_at", "estimated_finish")


def print_jobs(jobs: Sequence[dict[str, Any]], *, has_more: bool) -> None:
    """A line for each, the newest first."""
    console = Console(highlight=False)
    listed = Table()
    for heading in ("job", "model", "status", "phase", "evaluations", "removed blocks", "created"):
        listed.add_column(heading, overflow="fold")
    for job in jobs:
        cells = (job["id"], job["model"], job["status"], job["phase"] or "", _progress(job))
        removed = " ".join(map(str, job["removed_blocks"]))
        listed.add_row(*map(Text, (*cells, removed, _local(job["created_at"]))))
    console.print(listed if jobs else "no jobs")
    if has_more:
        console.print("there are older ones: --limit says how many to list")


def print_job(job: dict[str, Any]) -> None:
    """A line for each field that has a value."""
    shown = Table(show_header=False, box=None)
    for name, value in job.items():
        if name == "progress":
            shown.add_row("evaluations", _progress(job))
        elif name in _TIMES and value is not None:
            shown.add_row(name, _local(value))
        elif value not in (None, "", [], {}) and name not in ("object", "urls"):
            shown.add_row(name, Text(_plain(value)))
    Console(highlight=False).print(shown)


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if not progress["evaluations_total"]:
        return ""
    return f"{progress['evaluations_done']} of {progress['evaluations_total']}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {part}" for name, part in value.items() if part is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _local(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
