"""The API as ``sleb serve`` runs it, which writes its asyncio tasks to a file at SIGUSR1.

Run as ``python -m tests.soak.api_process FILE``. Settings come from the environment.
"""

import asyncio
import signal
import sys
from pathlib import Path
from types import FrameType

from app.config import ServeSettings
from app.server.serve import run_api


def write_tasks_on_signal(target: Path) -> None:
    """At every SIGUSR1, write one line per task to a file that appears atomically."""

    def write(_signal: int, _frame: FrameType | None) -> None:
        tasks = sorted(f"{task.get_coro()}".partition(" at 0x")[0] for task in asyncio.all_tasks())
        unfinished = target.with_suffix(".new")
        unfinished.write_text("\n".join(tasks))
        unfinished.rename(target)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    write_tasks_on_signal(Path(sys.argv[1]))
    run_api(ServeSettings())
