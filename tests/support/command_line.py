"""The ``sleb`` command, in this process or in one of its own."""

import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from app.cli.main import main
from tests.support.processes import environment

Completed = subprocess.CompletedProcess[str]


def sleb(data_dir: Path, *arguments: str) -> Completed:
    """Run the command in this process, which spares it some seconds of imports.

    An exception that ``main`` does not turn into a message is raised.
    """
    out, err = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        given = {**environment(data_dir), "SLEB_VERIFY": "inline"}
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["sleb", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code or 0
    assert isinstance(code, int)
    return Completed(["sleb", *arguments], code, out.getvalue(), err.getvalue())


def sleb_process(
    data_dir: Path, *arguments: str, variables: Mapping[str, str] | None = None
) -> Completed:
    """Run the command as a shell does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={**environment(data_dir), **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
