"""The demo model, with a progress bar while it is downloaded and converted."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pruning.models.demo_model import NAME, ensure_demo_model

_WORDS: Mapping[str, str] = {
    "download": f"Downloading {NAME} (first run only)",
    "convert": f"Converting {NAME} (first run only)",
}
_MB = 1_000_000


def bars_on(progress: Progress) -> Callable[[str, int, int], None]:
    """What observes how the demo model is made: a bar for each step, which moves from the start."""
    tasks: dict[str, TaskID] = {}

    def observe(what: str, done: int, total: int) -> None:
        if what not in tasks:
            for task in tasks.values():  # what follows says that it is there
                progress.update(task, visible=False)
            if total:  # before the first byte, and in a log too
                size = f"{total // _MB} MB ({total:,} bytes)"
                progress.console.print(f"{_WORDS[what]}: {size}", soft_wrap=True)
            tasks[what] = progress.add_task(_WORDS[what], total=None, size="")
        if done:
            size = f"{done // _MB} of {total // _MB} MB"
            progress.update(tasks[what], completed=done, total=total, size=size)

    return observe


def demo_model_with_bar(models_dir: Path, console: Console | None = None) -> Path:
    """The directory of the demo model. There is a bar, on stderr, only if it is not there yet.

    Raises ``DemoModelUnavailable``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"))
    console = console or Console(stderr=True, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        return ensure_demo_model(models_dir, bars_on(progress))
