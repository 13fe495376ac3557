"""What the image installs: ranges, or the packages of a lock file with hashes that pip checks."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.image.compose import ROOT

SCRIPT = ROOT / "docker" / "requirements.py"
LOCK = """\
# made by a command
accelerate==1.10.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via sleb-serve (pyproject.toml)
nvidia-cublas-cu12==12.8 ; platform_machine == 'x86_64' \\
    --hash=sha256:cc
    # via torch
nvidia-ml-py==12.1 \\
    --hash=sha256:dd
torch==2.9.1 \\
    --hash=sha256:ee
    # via
    #   accelerate
torch-like==1 \\
    --hash=sha256:ff
triton==3.5 ; sys_platform == 'linux' \\
    --hash=sha256:00
"""


def ranges() -> list[str]:
    """The requirements of the image, as the project has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("datasets", "gcs", "gguf", "heal", "otel", "plots", "s3")
    return [*project["dependencies"], *chain.from_iterable(extras[name] for name in names)]


def printed(directory: Path, part: str, lock: str | None = None) -> str:
    shutil.copy(ROOT / "pyproject.toml", directory)
    if lock is not None:
        (directory / "requirements.lock").write_text(lock)
    command = [sys.executable, str(SCRIPT), part]
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    return ran.stdout


def test_without_a_lock_it_is_the_ranges_of_the_project(tmp_path: Path) -> None:
    wanted = ranges()
    assert printed(tmp_path, "all").splitlines() == wanted
    [torch] = printed(tmp_path, "torch").splitlines()
    assert Requirement(torch).name == "torch"
    assert printed(tmp_path, "rest").splitlines() == [each for each in wanted if each != torch]


def test_with_a_lock_every_package_has_its_hashes(tmp_path: Path) -> None:
    assert printed(tmp_path, "all", LOCK).count("--hash") == 7
    assert printed(tmp_path, "torch", LOCK) == "torch==2.9.1\n"
    rest = printed(tmp_path, "rest", LOCK)
    names = [line.partition("==")[0] for line in rest.splitlines() if line[0].isalpha()]
    assert names == ["accelerate", "nvidia-ml-py", "torch-like"]
    assert rest.count("--hash") == 4


def wheel(directory: Path, name: str, version: str, needs: str = "") -> str:
    """Write a package without files, and return its digest."""
    file = directory / f"{name}-{version}-py3-none-any.whl"
    folder = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr(f"{folder}/METADATA", metadata)
        opened.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        opened.writestr(f"{folder}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_pip_takes_files_of_these_hashes_beside_a_torch_of_another_index(tmp_path: Path) -> None:
    """As the Dockerfile calls it: torch first, then the rest, whose hashes are checked."""
    wheel(tmp_path, "torch", "1.0+cpu")
    digest = wheel(tmp_path, "one", "1.0", "Requires-Dist: torch>=0.5\n")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"]
        command += ["--quiet", "--no-index", "--find-links", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def listed(part: str, digest: str) -> str:
        lock = f"torch==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
        lock += f"one==1.0 \\\n    --hash=sha256:{digest}\n    # via sleb-serve\n"
        (tmp_path / f"{part}.txt").write_text(printed(tmp_path, part, lock))
        return str(tmp_path / f"{part}.txt")

    assert pip("--no-deps", "--requirement", listed("torch", digest)).returncode == 0
    refused = pip("--requirement", listed("rest", "f" * 64))
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    taken = pip("--requirement", listed("rest", digest))
    assert taken.returncode == 0, taken.stderr
    assert list(venv.glob("lib/*/site-packages/one-1.0.dist-info"))


def test_the_lock_has_a_version_in_every_range(tmp_path: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {
        requirement.name: requirement.specifier
        for line in printed(tmp_path, "all", lock).splitlines()
        if line[0].isalnum()
        for requirement in [Requirement(line.partition("\\")[0])]
    }
    for line in ranges():
        wanted = Requirement(line)
        assert wanted.name in pinned, f"{line}: run `make lock`"
        [version] = [each.version for each in pinned[wanted.name]]
        assert wanted.specifier.contains(version), f"{line}: run `make lock`"
