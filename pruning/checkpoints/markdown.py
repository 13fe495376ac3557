"""Tables and lists in Markdown, for cards and reports."""

from collections.abc import Iterable, Sequence


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], num_left: int = 0
) -> str:
    """A table, of which the first ``num_left`` columns are words and the others numbers."""
    rule = ["---"] * num_left + ["--:"] * (len(headings) - num_left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, rule, *rows])


def bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
