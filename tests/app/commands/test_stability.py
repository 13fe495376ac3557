"""The tables of ``sleb stability`` in a narrow terminal."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.stability import print_report
from tests.support.search_runs import report_of, run_of


def test_headings_and_cells_are_whole_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    curves = {"prose": (400.0, 546.93), "code": (200.0, 219.43)}
    more = {text: (dense, pruned + 100) for text, (dense, pruned) in curves.items()}
    report = report_of(
        replace(run_of([1]), perplexities=curves),
        replace(run_of([2], seed=1), perplexities=more),
    )
    print_report(replace(report, model="smollm2-135m"), Path("out"), as_json=False)
    printed = capsys.readouterr().out
    assert "perplexity, prose" in printed
    assert "smollm2-135m, by block" in printed
    assert "546.93 to 646.93 219.43 to 319.43" in printed
    assert max(map(len, printed.splitlines())) <= 80
