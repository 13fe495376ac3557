"""Tables with a section for each kind of text, in a terminal of 80 columns."""

from io import StringIO

import pytest
from rich.console import Console

from app.commands.domain_table import print_sections

VALUES = ("43.25 (12.01 to 98.84)", "1.34 (0.94 to 1.90)")


@pytest.mark.parametrize(
    "name", ["smollm2-135m@-3", "smollm2-135m@prn-66140bf9c4e4b819e0d04-3+raw"]
)
def test_the_name_of_a_model_stays_whole(name: str) -> None:
    printed = StringIO()
    rows = [("prose", "-", "-"), (f"  {name}", *VALUES)]
    print_sections(Console(file=printed, width=80), "by text", ("", "perplexity", "× dense"), rows)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    [at] = [number for number, line in enumerate(lines) if f"  {name}" in line]
    beside = f"{lines[at]} {lines[at + 1] if at + 1 < len(lines) else ''}"
    assert all(value in beside for value in VALUES)
    assert any(line.split() == ["perplexity", "×", "dense"] for line in lines)
