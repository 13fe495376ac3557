"""The benchmark of response formats measures both sides of each schema."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import structured
from tests.support.tiny_directory import write_tiny_model


def test_it_writes_the_ratio_of_each_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLEB_DEVICE", "cpu")
    write_tiny_model(tmp_path / "models" / "tiny")
    command = typer.Typer()
    command.command()(structured.main)
    out = tmp_path / "results" / "structured.json"
    sizes = "--sequences 3 --turns 2 --steps 2 --prompt-len 8"
    words = ["--out", str(out), "--model", "tiny", *sizes.split()]
    ran = CliRunner().invoke(command, words, catch_exceptions=False)
    assert ran.exit_code == 0
    report = json.loads(out.read_text())
    assert [one["items"] for one in report["schemas"]] == ["records", "any JSON"]
    for one in report["schemas"]:
        assert len(one["ratios"]) == 2
        assert all(seconds > 0 for seconds in one["step_s"].values())
    assert isinstance(report["passes"], bool)
    table = out.with_suffix(".md").read_text()
    assert table in ran.output
    assert "| records |" in table
