"""Static checks of the Dockerfile. `make image-test` builds it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.image.compose import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).with_name("hadolint")
    return subprocess.run([binary, path], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_and_would() -> None:
    ran = hadolint(ROOT / "Dockerfile")
    assert (ran.returncode, ran.stdout) == (0, "")


def test_hadolint_is_not_deaf(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("WORKDIR /src", "WORKDIR src"))
    assert "DL3000" in hadolint(tmp_path / "Dockerfile").stdout


def test_what_docker_sees_is_what_is_copied() -> None:
    seen = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.+) \./", DOCKERFILE, re.MULTILINE)
    assert {"requirements.loc[k]" if name == "requirements.lock" else name for name in seen} == {
        name for line in copied for name in line.split()
    }
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_dependencies_are_installed_again_only_when_their_list_changes() -> None:
    """The stage of the dependencies copies only their list, not the source."""
    stages = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)
    copied = [re.findall(r"^COPY (.+)$", stage, re.MULTILINE) for stage in stages[2:]]
    requirements, dependencies, application, final = copied
    assert requirements == ["docker/requirements.py pyproject.toml requirements.loc[k] ./"]
    assert dependencies == ["--from=requirements /src/all.txt /src/torch.txt /src/rest.txt ./"]
    assert "app ./app" in application
    sources = [re.findall(r"--from=(\w+)", line)[0] for line in final]
    assert sources == ["build", "dependencies", "application"]
