"""Check that a file holds one idea and a function one step: `python -m tools.sizes`.

A file has 50 to 400 lines and a function at most 40. The signature of a command does not count, as
it is the list of the command's options. Knows only line numbers: ruff checks complexity.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("app", "benchmarks", "dashboards", "pruning", "tools")
MIN_FILE_LINES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 50, 400, 40
COMMANDS = (Path("app/cli"), Path("benchmarks"))
ENTRY_FILES = ("__init__.py", "__main__.py")

# A file or ``file:function`` that may be outside the limits, and the reason.
EXCEPTIONS: dict[str, str] = {
    "pruning/models/block_times.py": "imported without torch by the store of jobs",
    "app/api/load_shedding.py": "the route class of all routes that generate",
    "app/api/middleware/metrics.py": "one file for each middleware",
    "app/api/middleware/security_headers.py": "one file for each middleware",
    "app/api/routes/compare.py": "one file for each resource",
    "app/api/routes/generate.py": "one file for each resource",
    "app/api/routes/heal_jobs.py": "one file for each resource",
    "app/api/unload.py": "raises what app.api.errors maps, so no route can hold it",
    "app/bench/machine.py": "imported by all benchmarks, which need nothing else of app.bench",
    "app/cli/config.py": "one file for each command",
    "app/cli/doctor.py": "one file for each command",
    "app/cli/heal.py": "one file for each command",
    "app/cluster/autoscaling.py": "imported by Ray Serve's controller, without torch and ray",
    "app/models/demo_bar.py": "used by app.commands and app.bench, which do not import each other",
    "app/readiness.py": "shared by the API, its server and its metrics, below all three",
    "app/terminal.py": "imported by light commands, without torch",
    "pruning/plural.py": "imported by everything, without anything",
    "pruning/healing/places.py": "imported by the deletion of jobs, without torch",
    "pruning/jobs/keys.py": "the table of all Redis keys",
    "benchmarks/model.py": "imported by all benchmarks that load a model",
    "pruning/student_t.py": "imported by pruning.search and app.compare",
    "tools/docs/settings.py": "one file for each generated page",
}


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
    is_entry = path.name in ENTRY_FILES
    if num_lines > MAX_FILE_LINES or (num_lines < MIN_FILE_LINES and not is_entry):
        limits = f"expected {MIN_FILE_LINES} to {MAX_FILE_LINES}"
        yield str(name), f"{name}: {num_lines} lines, {limits}"
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
