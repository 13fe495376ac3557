"""Every command that a message, a docstring, a page or a guide names exists, with its options."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from app.cli.main import app

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(path for folder in ("app", "pruning", "benchmarks") for path in ROOT.glob(f"{folder}/**/*")),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "README.md",
]
PATHS = [path for path in SOURCES if path.suffix in {".py", ".js", ".html", ".md"}]
QUOTED = re.compile(r"`(?:\.venv/bin/)?sleb ([^`]+)`")
LINES = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?sleb ([^#\n]+)", re.MULTILINE)
# Without quotes, a sentence may go on behind the command
BARE = re.compile(r"\bwith (?:\.venv/bin/)?sleb ((?:models|jobs|keys) [a-z]+)")


def texts(path: Path) -> Iterator[str]:
    """The strings of a module, each in one piece; other files as they are."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield content
        return
    nodes = [*ast.walk(ast.parse(content))]
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in inner:
            yield str(node.value)


def named(path: Path) -> Iterator[str]:
    for text in texts(path):
        yield from QUOTED.findall(text)
        yield from BARE.findall(text)
        if path.suffix == ".md":
            yield from LINES.findall(text.replace("\\\n", " "))


@cache
def sleb() -> Any:
    """The command with all its commands and options, which takes long to make."""
    return typer.main.get_command(app)


def what_is_wrong(words: str) -> str | None:
    """None for a command that exists with all options that are named."""
    command = sleb()
    left = words.split()
    while hasattr(command, "commands") and left and re.fullmatch(r"[a-z][a-z-]*", left[0]):
        found = command.commands.get(left[0])
        if found is None:
            return f"no command {left[0]}"
        command, left = found, left[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    options = {word.partition("=")[0].rstrip(",.:;") for word in left if word.startswith("--")}
    unknown = options - known - {"--help"}
    return f"no option {sorted(unknown)}" if unknown else None


def test_every_command_that_is_named_exists() -> None:
    found = [(path, words) for path in PATHS for words in named(path)]
    assert len(found) > 100
    wrong = [(path.relative_to(ROOT), words, what_is_wrong(words)) for path, words in found]
    assert not [each for each in wrong if each[-1] is not None]


def test_a_wrong_command_is_seen() -> None:
    assert what_is_wrong("models list") == "no command list"
    assert what_is_wrong("prune NAME --num-removed 3") == "no option ['--num-removed']"
    assert what_is_wrong("prune NAME --num-remove 3") is None
    assert what_is_wrong("models --json") is None
