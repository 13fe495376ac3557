"""The API as ``sleb serve`` runs it, which writes down its tasks when it gets SIGUSR1.

Run as ``python -m tests.soak.api_process FILE``; settings from the environment.
"""

import asyncio
import signal
import sys
from pathlib import Path
from types import FrameType

from app.config import ServeSettings
from app.server.serve import run_api


def tell_tasks(target: Path) -> None:
    """From now on, at every SIGUSR1: one line a task, in a file that appears whole."""

    def write(_signal: int, _frame: FrameType | None) -> None:
        tasks = sorted(f"{task.get_coro()}".partition(" at 0x")[0] for task in asyncio.all_tasks())
        unfinished = target.with_suffix(".new")
        unfinished.write_text("\n".join(tasks))
        unfinished.rename(target)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    tell_tasks(Path(sys.argv[1]))
    run_api(ServeSettings())
