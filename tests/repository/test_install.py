"""What installs, and with which settings. Nothing is installed here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tools import torch_backend
from tools.install import environment_of_uv, of_uv, settings_in

# prints its arguments and variables of its environment; asked for torch, it does what is said here
UV = """#!/bin/sh
case "$*" in *"--dry-run --reinstall torch>"*) {asked};; esac
echo "$@" "$UV_FIND_LINKS" "$UV_CONSTRAINT" "$UV_DEFAULT_INDEX" "$UV_TORCH_BACKEND"
exit {code}
"""
NOT_FROM_THERE = (
    "PyTorch's own index has no build for this machine, or did not answer within 10 s.\n"
)


@pytest.fixture
def pip_conf(tmp_path: Path) -> Path:
    path = tmp_path / "pip.conf"
    path.write_text("[global]\nfind-links =\n  /one\n  /two\n[install]\nconstraint = some.txt\n")
    return path


def write_uv(folder: Path, code: int = 0, asked: str = "exit 1") -> Path:
    uv = folder / "uv"
    uv.write_text(UV.format(code=code, asked=asked))
    uv.chmod(0o755)
    return uv


def installed(tmp_path: Path, pip_conf: Path, code: int = 0, **environment: str) -> str:
    """The output of an installation with these settings, by a uv that exits with this code."""
    uv = write_uv(tmp_path, code)
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
    assert said == f"{expected} /one,/two some.txt https://index.example/simple \n"


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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has set nothing."""
    for name in ("UV_TORCH_BACKEND", "UV_DEFAULT_INDEX", "UV_FIND_LINKS", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def backend(uv: Path, **settings: str) -> str | None:
    """The build of torch that uv is asked for, with these settings of pip."""
    of_pip = {name.replace("_", "-"): value for name, value in settings.items()}
    return environment_of_uv(str(uv), of_pip).get("UV_TORCH_BACKEND")


def test_torch_is_one_that_is_built_for_this_machine(home: Path) -> None:
    uv = write_uv(home, asked='test "$UV_TORCH_BACKEND" = auto; exit')
    assert backend(uv, constraint="some.txt") == "auto"


def test_torch_is_that_of_pypi_where_there_is_no_other(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend(write_uv(home)) is None
    assert capsys.readouterr().out.endswith(NOT_FROM_THERE)


def test_an_index_that_does_not_answer_is_asked_for_a_while(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_backend, "_ASK_S", 0.2)
    assert backend(write_uv(home, asked="exec sleep 300")) is None
    assert capsys.readouterr().out.endswith(NOT_FROM_THERE)


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX"])
def test_an_index_of_the_user_is_the_only_one(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/wheels")
    assert backend(write_uv(home, asked="exit 0")) is None


def test_a_build_that_the_user_has_chosen_is_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = write_uv(home, asked="exit 0")
    for chosen, told in (("cu126", "cu126"), ("", None)):
        monkeypatch.setenv("UV_TORCH_BACKEND", chosen)
        assert backend(uv) == told


def test_the_settings_of_pip_decide_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = write_uv(home, asked="exit 0")
    assert backend(uv, index_url="https://index.example/simple") is None
    assert backend(uv, find_links="/wheels") is None
    monkeypatch.setenv("UV_FIND_LINKS", "")
    assert backend(uv, find_links="/wheels") == "auto"


@pytest.mark.parametrize("text", ['[pip]\nfind-links = ["/wheels"]', '[[index]]\nurl = "a"'])
def test_the_file_of_uv_decides_too(home: Path, text: str) -> None:
    uv = write_uv(home, asked="exit 0")
    (file := home / ".config" / "uv" / "uv.toml").parent.mkdir(parents=True)
    file.write_text('cache-dir = "a"\n')
    assert backend(uv) == "auto"
    file.write_text(text)
    assert backend(uv) is None
