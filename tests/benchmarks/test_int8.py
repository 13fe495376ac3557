"""The benchmark of int8 weights measures both forms, and judges what it has found."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import int8
from tests.support.tiny_directory import write_tiny_model


def test_it_writes_both_forms_their_ratios_and_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLEB_DEVICE", "cpu")
    write_tiny_model(tmp_path / "models" / "tiny")
    command = typer.Typer()
    command.command()(int8.main)
    out = tmp_path / "results" / "int8.json"
    sizes = "--sequences 1,3 --turns 2 --steps 2 --prompt-len 8 --num-windows 1 --seqlen 16"
    words = ["--out", str(out), "--model", "tiny", *sizes.split()]
    ran = CliRunner().invoke(command, words, catch_exceptions=False)
    assert ran.exit_code == 0
    report = json.loads(out.read_text())
    assert [one["sequences"] for one in report["steps"]] == [1, 3]
    for one in report["steps"]:
        assert len(one["ratios"]) == 2
        assert all(seconds > 0 for seconds in one["step_s"].values())
    assert len(report["perplexity"]) == 3
    assert all(one["plain"] != one["int8"] for one in report["perplexity"])
    assert report["weight_bytes"]["int8"] < report["weight_bytes"]["plain"]
    assert all(len(names) == 9 for names in report["products"].values())
    table = out.with_suffix(".md").read_text()
    assert table in ran.output
    assert "| 3 |" in table


@pytest.mark.parametrize(
    ("ratio", "perplexity", "passes"),
    [(1.5, 1.01, True), (1.49, 1.0, False), (2.0, 1.02, False)],
)
def test_it_passes_if_it_is_fast_and_right(ratio: float, perplexity: float, passes: bool) -> None:
    steps = [{"sequences": 1, "ratio": ratio}, {"sequences": 8, "ratio": 0.1}]
    assert int8._passes(steps, [{"ratio": 1.0}, {"ratio": perplexity}]) is passes
