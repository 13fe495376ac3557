"""``python -m tools.docs.portability [FILE]``: write the tables of docs/portability.md.

They show what ``tests.support.portability`` has measured, which is kept in a file beside this one.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EQUAL = "equal"
TARGET = Path(__file__).parents[2] / "docs" / "portability.md"
OUTCOMES = Path(__file__).with_name("portability.json")
_BEGIN, _END = "<!-- generated: {name} -->", "<!-- end: {name} -->"


@dataclass(frozen=True)
class Outcome:
    """What a program makes of a pruned model of a family: ``EQUAL``, or what is otherwise.

    A GGUF file of a model with a tower has the language model alone, which is of a family.
    """

    vllm: str
    gguf: str | None = None


def outcomes() -> dict[str, Outcome]:
    """By the type of the model, towers included."""
    found = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    return {family: Outcome(**fields) for family, fields in found.items()}


def page(text: str) -> str:
    """The page with its tables as they should be."""
    found = outcomes()
    tables = {
        "vllm": _table({family: each.vllm for family, each in found.items()}),
        "gguf": _table({family: each.gguf for family, each in found.items() if each.gguf}),
    }
    for name, table in tables.items():
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        part = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        text, count = part.subn(lambda _: f"{begin}\n\n{table}\n\n{end}", text)  # noqa: B023 - called at once
        if count != 1:
            raise ValueError(f"{TARGET} has no part between {begin} and {end}")
    return text


def _table(by_family: Mapping[str, str]) -> str:
    """Families by outcome, those that are equal first."""
    groups: dict[str, list[str]] = {}
    for family, outcome in sorted(by_family.items()):
        groups.setdefault(outcome, []).append(family)
    rows = sorted(groups.items(), key=lambda row: (row[0] != EQUAL, -len(row[1]), row[1]))
    lines = ["| outcome | families |", "|---|---|"]
    for outcome, families in rows:
        lines.append(f"| {outcome} | {', '.join(f'`{family}`' for family in families)} |")
    return "\n".join(lines)


def main(target: Path) -> None:
    target.write_text(page(TARGET.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
