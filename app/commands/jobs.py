"""``sleb jobs``: tables of jobs and deliveries, and the progress of a watched job."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import indent
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from app.commands.client import ServiceClient, follow
from app.commands.domain_table import domain_of, print_domains
from app.commands.progress import HealWork, SearchBar, search_progress
from app.commands.task_table import print_tasks, shares_in
from app.terminal import filled, local_time, plain_table
from pruning.checkpoints.trajectory import NONE, Margin, margin_text, ties
from pruning.jobs.job import JobStatus
from pruning.plural import counted
from pruning.removal import Removal

_REMOVAL_FIELDS = (
    "step", "block", "loss", "dense_loss", "runner_up", "margin", "margin_error",
)  # fmt: skip
_TIMES = ("created_at", "started_at", "finished_at", "estimated_finish", "pause_requested_at")
_ELSEWHERE = (
    "object", "urls", "domains", "tasks", "predicted_speedup", "measured_speedup", "losses",
    "dense_loss",
)  # fmt: skip
_WIDE = 140  # columns of a terminal that has room for all fields


def print_jobs(jobs: Sequence[dict[str, Any]], *, has_more: bool) -> None:
    """Print one line for each job, newest first."""
    console = Console(highlight=False)
    listed = plain_table(padding=(0, 1, 0, 0))
    fields = _fields(is_wide=console.width >= _WIDE)
    for heading in fields:
        listed.add_column(heading, overflow="fold", no_wrap=heading == "job")
    for job in jobs:
        listed.add_row(*(Text(field(job)) for field in fields.values()))
    console.print(listed if jobs else "no jobs")
    if has_more:
        console.print("more jobs exist: raise --limit to list them")


def _fields(*, is_wide: bool) -> Mapping[str, Callable[[dict[str, Any]], str]]:
    """The columns by their headings: without ``is_wide`` those that fit into 80 characters."""
    fields: dict[str, Callable[[dict[str, Any]], str]] = {
        "job": lambda job: job["id"],
        "model": lambda job: job["model"],
        "status": _status,
        "evaluations": _progress,
        "created": lambda job: local_time(job["created_at"])[0 if is_wide else 5 : 16],
    }
    if is_wide:
        fields["priority"] = lambda job: str(job["priority"])
        fields["phase"] = lambda job: job["phase"] or ""
        fields["removed blocks"] = lambda job: " ".join(map(str, job["removed_blocks"]))
    return fields


def print_job(job: dict[str, Any], events: Iterable[dict[str, Any]] = ()) -> None:
    """Print one line for each field that has a value, the rounds, and the quality of its model.

    ``events`` are those of the job, for the margins of its rounds.
    """
    shown = Table(show_header=False, box=None)
    for name, value in job.items():
        if value not in (None, "", [], {}) and name not in _ELSEWHERE:
            special = _SPECIAL.get(name)
            label, text = special(name, value) if special else (name, _plain(value))
            if text:
                shown.add_row(label, Text(text))
    if job.get("repair_progress") and job["pruned_model"] and job["repair"] is None:
        shown.add_row(
            "repair", "none: every repair made the model worse; see the events for details"
        )
    if job.get("predicted_speedup") is not None:  # an older service has none
        shown.add_row("speed-up", _speedup(job))
    console = Console(highlight=False)
    console.print(shown)
    _print_rounds(console, job, events)
    if job.get("domains"):  # an older service has none
        is_repaired = job["repair"] is not None
        print_domains(console, [domain_of(one, is_repaired=is_repaired) for one in job["domains"]])
    if job.get("tasks"):
        print_tasks(console, shares_in(job["tasks"]))


def _print_rounds(
    console: Console, job: Mapping[str, Any], events: Iterable[Mapping[str, Any]]
) -> None:
    """Print the loss after each removal, and by how much it was decided.

    ``events`` are those of the job: only they have the margins. Nothing without removals.
    """
    decided = {event["data"]["step"]: event["data"] for event in events if "block" in event["data"]}
    dense_loss = job["dense_loss"]
    rows = [] if dense_loss is None else [("dense", f"{dense_loss:.4f}", "", "")]
    margins: list[Margin] = []
    removed = zip(job["removed_blocks"], job["losses"], strict=False)
    for step, (block, loss) in enumerate(removed, start=1):
        data = decided.get(step, {})
        margins.append((data.get("margin"), data.get("margin_error")))
        margin, runner_up = margin_text(margins[-1]), data.get("runner_up")
        before = "" if runner_up is None else str(runner_up)
        rows.append((str(block), f"{loss:.4f}", "" if margin == NONE else margin, before))
    if not margins:
        return
    headings = ("removed block", "loss", "margin", "before")
    console.print()
    console.print(filled(plain_table("rounds of the search"), headings, rows, ["margin"]))
    console.print("loss: nats per token on the calibration text")
    for text in ties(margins, len(margins)):
        console.print(text, markup=False)


def print_deliveries(deliveries: Sequence[dict[str, Any]]) -> None:
    """Print one line for each attempt, if there are any, whose names fit into 80 characters."""
    shown = plain_table("webhook messages", padding=0)
    for heading in ("message", "attempt", "time", "took", "result", "next attempt"):
        shown.add_column(heading, overflow="fold", no_wrap=heading != "result")
    for one in deliveries:
        result = one["error"] or f"delivered, {one['response_status']}"
        next_at = one["next_attempt_at"]
        next_attempt = _moment(next_at) if next_at else "none: gave up" if one["error"] else ""
        times = (_moment(one["at"]), f"{one['duration_s']:.2f} s")
        cells = (one["type"], str(one["attempt"]), *times, result, next_attempt)
        shown.add_row(*map(Text, cells))
    if deliveries:
        Console(highlight=False).print("", shown, sep="\n")


def watch(client: ServiceClient, job_id: str) -> None:
    """Show progress and events on stderr until the job ends. Raises ``JobNotSucceeded``."""
    spec = client.get(job_id)["spec"]
    with search_progress(Console(stderr=True, highlight=False)) as progress:
        at_most = spec.get("max_perplexity_ratio") is not None
        with JobView(progress, at_most=at_most, heal=_heal_work(spec)) as view:
            follow(client, job_id, view.show)


def _heal_work(spec: dict[str, Any]) -> HealWork | None:
    """The two trainings: no event says how far their evaluation is."""
    heal = spec.get("heal")
    return None if heal is None else HealWork(heal["num_tokens"], 1 + heal["control"])


class JobView:
    """Shows events: a progress bar for every phase, and a line for any other event."""

    def __init__(self, progress: Progress, *, at_most: bool, heal: HealWork | None = None) -> None:
        self._progress = progress
        self._bar = SearchBar(progress, at_most=at_most, heal=heal)
        self._status = ""

    def show(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if data["status"] != self._status and not JobStatus(data["status"]).is_final:
            self._bar.phase(data["status"])  # moves until a phase begins
        self._status = data["status"]
        if "phase" in data:
            self._bar.phase(data["phase"])
        elif "evaluations_total" in data:
            self._bar.evaluated(data["evaluations_done"], data["evaluations_total"])
        elif "repair_steps_total" in data:
            self._bar.repairing(data["repair_steps_done"], data["repair_steps_total"])
        elif "heal" in data:
            step = data["heal"]
            of_step = (step["num_tokens"], step["ratio"], step["loss"], step["held_out_loss"])
            self._bar.healed(step["training"], *of_step)
        elif "block" in data:
            fields = {name: data[name] for name in _REMOVAL_FIELDS}
            self._bar.removed(Removal(**fields, scores={}, num_windows={}))
        elif event["level"] != "error":  # an error ends the job, and is raised by ``follow``
            self._progress.console.print(f"  {event['message']}", markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the bars, and say what ties mean."""
        self._bar.end()
        removals = self._bar.removals
        for text in ties([(one.margin, one.margin_error) for one in removals], len(removals)):
            self._progress.console.print(text, markup=False)


def _status(job: dict[str, Any]) -> str:
    """``pausing`` for a running job that is about to pause, which is no status of the API."""
    return "pausing" if job["pause_requested_at"] else str(job["status"])


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if not progress["evaluations_total"]:
        return ""
    return f"{progress['evaluations_done']} of {progress['evaluations_total']}"


def _moment(seconds: float) -> str:
    return local_time(seconds)[5:]  # without the year


def _speedup(job: dict[str, Any]) -> str:
    predicted, measured = f"{job['predicted_speedup']:.2f} predicted", job["measured_speedup"]
    if measured is None:
        return f"{predicted}, not measured (run sleb bench or sleb compare)"
    low, high = measured["low"], measured["high"]
    ends = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{predicted}, {measured['ratio']:.2f}{ends} measured"


def _condition(condition: Mapping[str, Any]) -> str:
    """As `Queued: no, since 2026-11-26 23:42:00: a worker has taken it`."""
    answer = "yes" if condition["status"] == "True" else "no"
    since = condition["last_transition_at"]
    when = "" if since is None else f", since {local_time(since)}"
    return f"{condition['type']}: {answer}{when}: {condition['message']}"


def _sink(delivery: Mapping[str, Any]) -> str:
    """As `store: not yet, after 3 attempts: s3://bucket cannot be reached`."""
    if delivery["is_sent"]:
        return f"{delivery['sink']}: {delivery['url']}, since {local_time(delivery['at'])}"
    number, error = delivery["num_attempts"], delivery["error"]
    attempts = f", after {counted(number, 'attempt')}: {error}" if number else ""
    return f"{delivery['sink']}: not yet{attempts}"


_SPECIAL: Mapping[str, Callable[[str, Any], tuple[str, str]]] = {
    "progress": lambda _, progress: ("evaluations", _progress({"progress": progress})),
    "repair_progress": lambda _, found: (
        "repair steps",
        f"{found['steps_done']} of {found['steps_total']}",
    ),
    "sinks": lambda _, found: ("sent to", "\n".join(map(_sink, found))),
    "conditions": lambda name, found: (name, "\n".join(map(_condition, found))),
    **dict.fromkeys(_TIMES, lambda name, seconds: (name, local_time(seconds))),
}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if part not in (None, [], {})}
        return "\n".join(_field(name, part) for name, part in parts.items())
    if not isinstance(value, list):
        return str(value)
    is_nested = any(isinstance(part, dict | list) for part in value)
    return ("\n\n" if is_nested else " ").join(map(_plain, value))


def _field(name: str, value: object) -> str:
    """One line, or the name and indented lines below it."""
    text = _plain(value)
    return f"{name}:\n{indent(text, '  ')}" if "\n" in text else f"{name}: {text}"
