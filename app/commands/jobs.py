"""Jobs on the terminal, as the API describes them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_TIMES = ("created_at", "started_at", "finished_at", "estimated_finish", "pause_requested_at")
_HEADINGS = (
    "job",
    "model",
    "status",
    "priority",
    "phase",
    "evaluations",
    "removed blocks",
    "created",
)


def print_jobs(jobs: Sequence[dict[str, Any]], *, has_more: bool) -> None:
    """A line for each, the newest first."""
    console = Console(highlight=False)
    listed = Table()
    for heading in _HEADINGS:
        listed.add_column(heading, overflow="fold")
    for job in jobs:
        cells = (job["id"], job["model"], _status(job), str(job["priority"]), job["phase"] or "")
        removed = " ".join(map(str, job["removed_blocks"]))
        listed.add_row(*map(Text, (*cells, _progress(job), removed, _local(job["created_at"]))))
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


def print_deliveries(deliveries: Sequence[dict[str, Any]]) -> None:
    """A line for each attempt; nothing without any."""
    shown = Table()
    for heading in ("webhook message", "attempt", "at", "took", "result", "next attempt"):
        shown.add_column(heading, overflow="fold")
    for one in deliveries:
        result = one["error"] or f"delivered, {one['response_status']}"
        following = one["next_attempt_at"]
        fate = _local(following) if following else "none: given up" if one["error"] else ""
        times = (_local(one["at"]), f"{one['duration_s']:.2f} s")
        shown.add_row(*map(Text, (one["type"], str(one["attempt"]), *times, result, fate)))
    if deliveries:
        Console(highlight=False).print(shown)


def _status(job: dict[str, Any]) -> str:
    return f"{job['status']}, to pause" if job["pause_requested_at"] else str(job["status"])


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if not progress["evaluations_total"]:
        return ""
    return f"{progress['evaluations_done']} of {progress['evaluations_total']}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if part is not None}
        return "\n".join(f"{name}: {_plain(part)}" for name, part in parts.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _local(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
