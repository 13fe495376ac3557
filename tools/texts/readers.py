"""Reads the documents of unpacked packages: each has a name, with the work first, and a text."""

import bz2
import csv
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tools.texts.markup import text_of_html, text_of_wiki

Documents = Iterator[tuple[str, str]]  # source and text
Read = Callable[[Path], Documents]

FACTBOOK_SECTIONS = (
    ("Introduction", "Background"),
    ("Economy", "Economy - overview"),
    ("Transnational Issues", "Disputes - international"),
)
PYTHON_MANUALS = ("extending", "faq", "howto", "library", "reference", "tutorial", "using")
ROWS_OF_A_TABLE = 120
NUM_TABLES = 8  # documents of one file of a data set


def factbook(folder: Path) -> Documents:
    for path in sorted(folder.glob("package/*/*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        found = (profile.get(part, {}).get(name, {}) for part, name in FACTBOOK_SECTIONS)
        paragraphs = [section["text"].strip() for section in found if section.get("text")]
        yield f"The World Factbook, {path.parent.name}/{path.stem}", "\n\n".join(paragraphs)


def moby_dick(folder: Path) -> Documents:
    for path in sorted(folder.glob("package/data/chapter_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        yield f"Moby-Dick, chapter {record['chapter']}", record["text"].strip()


def encyclopaedia(folder: Path) -> Documents:
    """Articles of the sample of Wikipedia that gensim has for its tests, without redirections."""
    path = next(folder.rglob("enwiki-latest-pages-articles1.xml-*-shortened.bz2"))
    with bz2.open(path) as file:
        articles = [page for _, page in ET.iterparse(file)]  # noqa: S314 - a pinned package
    for page in articles:
        if page.tag.rpartition("}")[2] != "page":
            continue
        namespace = page.tag.partition("}")[0] + "}"
        title, text = page.findtext(f"{namespace}title"), page.findtext(f".//{namespace}text")
        if text and not text.upper().startswith("#REDIRECT"):
            yield from parts(f"Wikipedia, {title}", text_of_wiki(text))


def austen(folder: Path) -> Documents:
    """Novels that R has serialized, as one string for each line."""
    raw = next(folder.rglob("data/Rdata.rdb")).read_bytes()
    while raw:
        stream = zlib.decompressobj()
        lines = list(_strings(stream.decompress(raw[4:])))
        raw = stream.unused_data
        text = "\n".join(lines)
        for chapter in re.split(r"\n(?=CHAPTER |Chapter )", text)[1:]:
            yield from parts(f"Jane Austen, {lines[0].title()}, {chapter[:12].split()[1]}", chapter)


def _strings(serialized: bytes) -> Iterator[str]:
    """The values of a serialized character vector of R, in its binary format."""
    at = serialized.index(b"UTF-8") + len(b"UTF-8") + 8
    while serialized[at : at + 4] in (b"\0\4\0\t", b"\0\x04\x80\t", b"\0\0\x80\t"):
        (size,) = struct.unpack_from(">i", serialized, at + 4)
        yield serialized[at + 8 : at + 8 + size].decode("utf-8", "replace")
        at += 8 + max(size, 0)


def canterbury(folder: Path, *names: str) -> Documents:
    """Texts of the Canterbury corpus."""
    for name in names:
        path = next(folder.rglob(f"testdata/{name}.txt"))
        yield from parts(f"Canterbury corpus, {name}", path.read_text(encoding="latin-1"))


_SPOKEN = re.compile(
    r'speaker= *(?P<speaker>[\w ]+)|(?:message|story)= *_ *"(?P<text>[^"]+)"|\[/(?:event|story)\]'
)


def campaigns(folder: Path) -> Documents:
    """Narration and dialogue of the scenarios of a game, as a play."""
    for path in sorted(folder.rglob("scenarios/*.cfg")):
        lines, speaker = [], ""
        for found in _SPOKEN.finditer(path.read_text(encoding="utf-8")):
            if found["speaker"]:
                speaker = found["speaker"].strip()
            elif found["text"]:
                told = " ".join(found["text"].split())
                named = speaker and speaker not in ("narrator", "unit", "second_unit")
                lines.append(f"{speaker}: {told}" if named else told)
                speaker = ""
            elif lines and lines[-1]:
                lines.append("")
        yield f"Battle for Wesnoth, {path.parts[-3]}/{path.stem}", "\n".join(lines).strip()


def chats(folder: Path) -> Documents:
    """Questions and answers of a corpus for chat bots."""
    for path in sorted(folder.rglob("data/english/*.yml")):
        _, _, told = path.read_text(encoding="utf-8").partition("conversations:\n")
        turns = re.sub(r"(?m)^- - ", "\nUser: ", told)
        turns = re.sub(r"(?m)^  - ", "Assistant: ", turns)
        yield from parts(f"ChatterBot corpus, {path.stem}", turns.strip())


def files(folder: Path, pattern: str, work: str, *without: str) -> Documents:
    """Whole files, but for those that have a word of ``without`` in their path."""
    for path in sorted(folder.rglob(pattern)):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(word in name for word in without):
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            yield from parts(f"{work}, {path.parent.name}/{path.name}", text)


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


def pages(folder: Path, pattern: str, work: str) -> Documents:
    """The text of pages in HTML."""
    for path in sorted(folder.rglob(pattern)):
        text = text_of_html(path.read_text(encoding="utf-8", errors="replace"))
        yield f"{work}, {path.stem}", text


def tables(folder: Path, work: str, *names: str) -> Documents:
    """Rows of data sets, as CSV, as JSON with a record a line, or as indented JSON."""
    for number, name in enumerate(names):
        path = next(folder.rglob(name))
        records = _records(path)
        starts = range(0, len(records), ROWS_OF_A_TABLE)
        pieces = [records[at : at + ROWS_OF_A_TABLE] for at in starts]
        for at in range(0, len(pieces), max(1, len(pieces) // NUM_TABLES)):
            yield f"{work}, {name} {at}", _written(pieces[at], path.suffix == ".csv", number + at)


def _records(path: Path) -> list[Any]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    found = json.loads(path.read_text(encoding="utf-8"))
    while isinstance(found, dict):
        found = max(found.values(), key=lambda value: len(value) if isinstance(value, list) else 0)
    return list(found)


def _written(records: Sequence[Any], is_csv: bool, number: int) -> str:
    if is_csv and number % 2 == 0:
        head = ",".join(records[0])
        return "\n".join([head, *(",".join(record.values()) for record in records)])
    if number % 3 == 0:
        return json.dumps(records[: len(records) // 3], indent=2, ensure_ascii=False)
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def parts(source: str, text: str, num_characters: int = 12_000) -> Documents:
    """A long text in parts of about this many characters, between paragraphs."""
    if len(text) <= 2 * num_characters:
        yield source, text
        return
    number, start = 1, 0
    while start < len(text):
        end = text.find("\n\n", start + num_characters)
        end = len(text) if end < 0 or len(text) - end < num_characters // 2 else end
        yield f"{source} ({number})", text[start:end].strip("\n")
        number, start = number + 1, end


sqlite_manual: Read = partial(pages, pattern="doc/sqlite3/*.html", work="SQLite documentation")
