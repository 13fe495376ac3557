"""The shell completes commands and options, without waiting for torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment

SLEB = """
import sys

from app.cli.main import main

try:
    main()
finally:
    assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""


def completed(directory: Path, words: str) -> list[str]:
    """The words that bash offers after these, once completion is installed."""
    script = directory / "sleb"
    script.write_text(SLEB)
    asked = {"_SLEB_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(words.count(" "))
    command = [sys.executable, str(script)]
    env = {**environment(directory), **asked}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return sorted(ran.stdout.split())


@pytest.mark.slow
def test_commands_and_options_are_completed(tmp_path: Path) -> None:
    assert completed(tmp_path, "sleb models a") == ["add", "alias"]
    assert completed(tmp_path, "sleb export --q") == ["--quantize"]
