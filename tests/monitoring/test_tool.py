"""Without Prometheus these tests are left out, but never in CI, and say where it comes from."""

from pathlib import Path

import pytest

from tests.monitoring.prometheus import tool


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_missing_promtool_fails_in_ci_and_is_left_out_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install prometheus"):
        tool("promtool")


def test_ci_installs_it() -> None:
    script = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert "apt-get install" in script
    assert script.index("prometheus") < script.index("make test")
