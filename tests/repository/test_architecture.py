"""docs/architecture.md lists all packages and no others."""

import re

from tests.support.pages import ROOT, prose

PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "packages.svg"
FOLDERS = ("app", "benchmarks", "dashboards", "pruning", "tools")


def packages(*folders: str) -> set[str]:
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return {".".join(file.parent.relative_to(ROOT).parts) for file in files}


def test_every_package_is_a_row_and_every_row_is_a_package() -> None:
    section = prose(PAGE).partition("\n## The packages\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z._]+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(packages(*FOLDERS))


def test_the_picture_names_every_package_of_app_and_pruning() -> None:
    labels = set(re.findall(r'class="code"[^>]*>([a-z]+)<', prose(PICTURE)))
    names = {name.rpartition(".")[2] for name in packages("app", "pruning")}
    assert names - {"app", "pruning"} <= labels
