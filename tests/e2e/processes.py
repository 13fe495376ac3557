"""The processes that work on one data directory, found by their environment or command line."""

import os
from pathlib import Path

import psutil


def environment(data_dir: Path) -> dict[str, str]:
    return {**os.environ, "SLEB_DATA_DIR": str(data_dir), "COLUMNS": "100"}


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of everything alive that was started for this directory."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("SLEB_DATA_DIR") == str(data_dir)
            if process.status() != psutil.STATUS_ZOMBIE and is_ours:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def is_gone(data_dir: Path, *, ignoring: str) -> bool:
    return all(ignoring in command for command in processes_of(data_dir))
