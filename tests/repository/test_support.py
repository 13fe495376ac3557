"""What several test files need is in tests/support: no test file imports another one."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.pages import ROOT


def imported_modules(file: Path) -> Iterator[str]:
    """Name every module, and every name of one, that the file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_imports_a_test_file() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for module in imported_modules(file)
        if module.startswith("tests.") and ".test_" in module
    ]
    assert found == []
