"""Check that a file holds one idea and a function one step: `python -m tools.sizes`.

A file has at most 400 lines and a function at most 40. The signature of a command does not count,
as it is the list of its options. Knows only line numbers: ruff checks complexity.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("app", "benchmarks", "dashboards", "pruning", "tools")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 40
COMMANDS = (Path("app/cli"), Path("benchmarks"))

# A file or ``file:function`` that may be outside the limits, and the reason.
EXCEPTIONS: dict[str, str] = {}


def complaints(root: Path, exceptions: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each file and function outside the limits, and each idle exception."""
    unused = set(exceptions)
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            for name, sentence in _oversized(path, path.relative_to(root)):
                if name in exceptions:
                    unused.discard(name)
                else:
                    yield sentence
    for name in sorted(unused):
        yield f"{name}: is within the limits, so remove its exception"


def _oversized(path: Path, name: Path) -> Iterator[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    num_lines = text.count("\n")
    if num_lines > MAX_FILE_LINES:
        yield str(name), f"{name}: {num_lines} lines, expected at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0].lineno if any(map(name.is_relative_to, COMMANDS)) else node.lineno
            num_lines = (node.end_lineno or first) - first + 1
            if num_lines > MAX_FUNCTION_LINES:
                size = f"{num_lines} lines, expected at most {MAX_FUNCTION_LINES}"
                yield f"{name}:{node.name}", f"{name}:{node.lineno}: {node.name} has {size}"


def main() -> None:
    found = list(complaints(Path.cwd(), EXCEPTIONS))
    for sentence in found:
        print(sentence, file=sys.stderr)  # noqa: T201 - this is a command
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
