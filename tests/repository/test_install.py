"""What installs, and with which settings. Nothing is installed here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tools.install import of_uv, settings_in

# prints its arguments and three variables of its environment
UV = """#!/bin/sh
echo "$@" "$UV_FIND_LINKS" "$UV_CONSTRAINT" "$UV_DEFAULT_INDEX"
exit {code}
"""


@pytest.fixture
def pip_conf(tmp_path: Path) -> Path:
    path = tmp_path / "pip.conf"
    path.write_text("[global]\nfind-links =\n  /one\n  /two\n[install]\nconstraint = some.txt\n")
    return path


def installed(tmp_path: Path, pip_conf: Path, code: int = 0, **environment: str) -> str:
    """The output of an installation with these settings, by a uv that exits with this code."""
    uv = tmp_path / "uv"
    uv.write_text(UV.format(code=code))
    uv.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "-m", "tools.install", str(uv), "--help"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": str(pip_conf), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_uv_gets_the_settings_of_pip(tmp_path: Path, pip_conf: Path) -> None:
    said = installed(tmp_path, pip_conf, PIP_INDEX_URL="https://index.example/simple")
    expected = f"pip install --python {sys.executable} --help"
    assert said == f"{expected} /one,/two some.txt https://index.example/simple\n"


def test_its_own_settings_come_first(tmp_path: Path, pip_conf: Path) -> None:
    assert "/three some.txt" in installed(tmp_path, pip_conf, UV_FIND_LINKS="/three")


def test_pip_installs_where_uv_fails(tmp_path: Path, pip_conf: Path) -> None:
    assert "pip install [options]" in installed(tmp_path, pip_conf, code=1)


def test_pip_installs_where_it_has_settings_that_uv_does_not_know(
    tmp_path: Path, pip_conf: Path
) -> None:
    said = installed(tmp_path, pip_conf, PIP_NO_BINARY="numpy")
    assert said.startswith("pip installs, as uv does not know its settings no-binary.\n")
    assert "pip install [options]" in said


def test_bytecode_is_written_where_python_may_not(tmp_path: Path, pip_conf: Path) -> None:
    said = installed(tmp_path, pip_conf, PYTHONDONTWRITEBYTECODE="1")
    assert f"--python {sys.executable} --compile-bytecode --help" in said


def test_an_environment_variable_goes_before_the_files() -> None:
    lines = [":env:.timeout='3'", "install.timeout='2'", "global.timeout='1'", "list.format='json'"]
    assert settings_in(lines) == {"timeout": "3"}
    assert of_uv(settings_in(lines)) == {"UV_HTTP_TIMEOUT": "3"}
