"""Tables and lists in Markdown, for cards."""

from collections.abc import Iterable, Sequence


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["--:"] * len(headings)
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, rule, *rows])


def bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
