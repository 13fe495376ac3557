"""What ``sleb export`` leaves behind when it is stopped, and what the next one removes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pruning.checkpoints.staging import STAGING
from tests.support.command_line import sleb
from tests.support.processes import environment, running
from tests.support.waiting import wait_until

WITH_A_STOP = """
import os, signal, sys
import app.commands.export as export

def stop(*_args, **_options):
    os.kill(os.getpid(), signal.{signal})

export.compare_gguf = export.verify_portable = stop
from app.cli.main import main
main()
"""
PLACES = {"file": ("--gguf", "tiny.gguf"), "directory": ("tiny",)}

# a process takes seconds, and both kinds are written by way of the same directory
each_kind = pytest.mark.parametrize(
    "kind", ["file", pytest.param("directory", marks=pytest.mark.slow)]
)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def words(kind: str, out: Path) -> list[str]:
    *options, name = PLACES[kind]
    return ["export", "tiny", *options, str(out / name)]


def stopped(tiny_models_dir: Path, out: Path, kind: str, number: signal.Signals) -> int:
    """The exit code of an export that a signal meets before its files are compared."""
    code = WITH_A_STOP.format(signal=number.name)
    return subprocess.run(
        [sys.executable, "-c", code, *words(kind, out)],
        env=environment(tiny_models_dir.parent),
        check=False,
    ).returncode


@pytest.mark.slow
@each_kind
def test_what_a_killed_export_leaves_is_removed_by_the_next(
    tiny_models_dir: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    assert stopped(tiny_models_dir, out, kind, signal.SIGKILL) == -signal.SIGKILL
    assert names_in(out) == [STAGING]
    assert any(path.is_dir() for path in (out / STAGING).iterdir())
    for other in PLACES:
        assert sleb(tiny_models_dir.parent, *words(other, out)).returncode == 0
    assert names_in(out) == ["tiny", "tiny.gguf"]


@pytest.mark.slow  # as the next test shows the same of a whole command
@pytest.mark.parametrize("kind", PLACES)
def test_an_export_that_is_told_to_end_leaves_nothing(
    tiny_models_dir: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    assert stopped(tiny_models_dir, out, kind, signal.SIGTERM) == 128 + signal.SIGTERM
    assert names_in(out) == []


@pytest.mark.slow
def test_it_may_wait_for_the_process_that_verifies(tiny_models_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "app", *words("directory", out)]
    with running(command, environment(tiny_models_dir.parent)) as process:
        wait_until(lambda: [*out.glob(f"{STAGING}/scratch-*/expected")], "a verification", 100)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert names_in(out) == []
