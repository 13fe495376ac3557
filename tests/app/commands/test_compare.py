"""The table of a comparison."""

from typing import Any

import pytest

from app.commands.compare import print_comparison


def output(model: str, text: str, tpot_s: float) -> dict[str, Any]:
    return {"model": model, "text": text, "timings": [{"tpot_s": tpot_s}, {"tpot_s": tpot_s}]}


SPEEDUP = {"ratio": 1.25, "low": 1.2, "high": 1.3, "verdict": "faster", "reason": "5 pairs"}
FOUND = {
    "models": ["tiny", "tiny@prn-6612fbe3e6f88eee48750-3"],
    "prompts": [
        {"outputs": [output("tiny", " [/b] a", 0.05), output("tiny@-3", " b", 0.04)]},
    ],
    "control": {
        "tpot": {**SPEEDUP, "ratio": 1.01, "low": 0.98, "high": 1.04},
        "ttft": None,
        "agreement": 0.96,
    },
    "results": [
        {
            "model": "tiny@prn-6612fbe3e6f88eee48750-3",
            "tpot": SPEEDUP,
            "ttft": {**SPEEDUP, "ratio": 10.5, "low": 10.25, "high": 10.75},
            "agreement": 0.5,
        }
    ],
}


def test_every_model_is_a_row_with_its_speedup_and_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_comparison(FOUND, ["The sea is"])
    told = capsys.readouterr().out
    [dense] = [line for line in told.splitlines() if line.split()[2:] == ["baseline"]]
    [pruned] = [line for line in told.splitlines() if "1.25 (1.20 to 1.30)" in line]
    assert "50.0" in dense
    for shown in ("B", "40.0", "10.50 (10.25 to 10.75)", "50%"):
        assert shown in pruned
    assert "B: tiny@prn-6612fbe3e6f88eee48750-3, faster per token: 5 pairs" in told
    assert "A: [/b] a" in told
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    assert "(the baseline against itself): speed-up 1.01 (0.98 to 1.04)" in words
    assert "same tokens 96%" in words
    print_comparison({**FOUND, "control": None}, ["The sea is"])
    assert "control" not in capsys.readouterr().out
