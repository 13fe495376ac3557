"""Imports have no side effects: no setting is read, and nothing is written or printed."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import app
import pruning
from tests.support.processes import environment


@pytest.mark.slow
def test_every_module_imports_without_a_trace(tmp_path: Path) -> None:
    modules = [
        module.name
        for package in (app, pruning)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    assert len(modules) > 30
    nonsense = {"SLEB_PORT": "x", "SLEB_LOG_LEVEL": "loud", "SLEB_THREADS": "-1"}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(f"import {name}" for name in modules)],
        env={**environment(tmp_path / "data"), **nonsense},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
