"""``sleb jobs watch``: a job on its way, shown as a run of this process is."""

from typing import Any

from rich.console import Console
from rich.progress import Progress

from app.commands.client import JobClient, follow
from app.commands.prune import SearchBar, search_progress
from pruning.removal import Removal

_OF_A_REMOVAL = ("step", "block", "loss", "dense_loss", "runner_up", "margin", "margin_error")


def watch(client: JobClient, job_id: str) -> None:
    """Show a progress bar and what happens, on stderr. Raises ``JobNotSucceeded``."""
    spec = client.get(job_id)["spec"]
    with search_progress(Console(stderr=True, highlight=False)) as progress:
        view = JobView(progress, at_most=spec.get("max_perplexity_ratio") is not None)
        try:
            follow(client, job_id, view.show)
        finally:
            view.end()


class JobView:
    """A bar for every phase, a line for everything else."""

    def __init__(self, progress: Progress, *, at_most: bool) -> None:
        self._progress = progress
        self._bar = SearchBar(progress, at_most=at_most)

    def show(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if "phase" in data:
            self._bar.phase(data["phase"])
        elif "evaluations_total" in data:
            self._bar.evaluated(data["evaluations_done"], data["evaluations_total"])
        elif "block" in data:
            fields = {name: data[name] for name in _OF_A_REMOVAL}
            self._bar.removed(Removal(**fields, scores={}, num_windows={}))
        elif event["level"] != "error":  # that one ends the job: whoever waits for it tells why
            self._progress.console.print(f"  {event['message']}", markup=False)

    def end(self) -> None:
        self._bar.end()
