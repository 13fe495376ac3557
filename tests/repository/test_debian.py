"""Tests that need a Debian package are skipped without it, but fail in CI, and name the package."""

import re

import pytest

from tests.support.debian import tool
from tests.support.pages import ROOT

PACKAGES = {
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
    "chromium": "chromium",
    "g++": "g++",
    "node": "nodejs",
    "npm": "npm",
}


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_command_fails_in_ci_and_is_left_out_elsewhere(
    monkeypatch: pytest.MonkeyPatch, name: str, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=re.escape(f"apt-get install {PACKAGES[name]}")):
        tool(name, PACKAGES[name])


@pytest.mark.parametrize("package", PACKAGES.values())
def test_ci_installs_it(package: str) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert script.index(f"missing+=({package})") < script.index("apt-get install")
    assert script.index("apt-get install") < script.index("make test")
