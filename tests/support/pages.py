"""The pages of the documentation, and the blocks of code in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = tuple(sorted((ROOT / "docs" / "guides").glob("*.md")))
_BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOT_RUN = "no-run: "


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    note: str
    code: str

    @property
    def why_not_run(self) -> str | None:
        """Of a command: what a machine may lack for it, as the page says."""
        return self.note.removeprefix(_NOT_RUN) if self.note.startswith(_NOT_RUN) else None


def blocks(*pages: Path) -> Iterator[Block]:
    for page in pages:
        for language, note, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
            yield Block(page.stem, language, note.strip(), code)


def commands(*pages: Path) -> str:
    """All commands of these pages, those that are not run as well."""
    return "\n".join(each.code for each in blocks(*pages) if each.language in {"sh", "bash"})


def prose(*pages: Path) -> str:
    """The pages as they are."""
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)
