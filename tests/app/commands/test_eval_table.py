"""The table of several models in a terminal of 80 columns."""

import pytest

from app.commands.eval_table import Evaluation, print_evaluations

LONG = "smollm2-135m@prn-66140e72f5cd9ba5c58e8"


@pytest.mark.parametrize(
    ("names", "with_letters"),
    [
        (["smollm2-135m", "smollm2-135m@-3+raw", "smollm2-135m@-3"], False),
        ([LONG, f"{LONG}+healed", f"{LONG}+healed, control"], True),
    ],
)
def test_names_of_models_stay_whole(
    names: list[str],
    with_letters: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    blocks = (17, 16, 18, 14, 15, 13)
    measured = [
        Evaluation(name, 24, blocks, "bfloat16", None, (), None, None, (), None) for name in names
    ]
    print_evaluations(measured, [], as_json=False, out=None)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert (f"A: {names[0]}\n" in shown) == with_letters
    parts = names if with_letters else [part for name in names for part in name.split("@")]
    assert all(part in shown for part in parts)
