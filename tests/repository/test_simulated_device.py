"""With a torch that is built for GPUs, the tests of the simulated one are skipped, and say so."""

import re
import subprocess
import sys

from tests.support.pages import ROOT

CODE = """
import sys

import pytest
import torch

torch.backends.cuda.is_built = lambda: True
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_the_last_lines_say_that_it_was_skipped() -> None:
    modules = ["tests/simcuda/test_ledger.py", "tests/simcuda/test_healing.py"]
    run = subprocess.run(
        [sys.executable, "-c", CODE, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    *_, summary, totals = run.stdout.splitlines()
    assert re.match(r"SKIPPED \d\d tests: torch .* is built for GPUs, and the simulated", summary)
    assert "passed" not in totals
