"""Texts that come with the product, of three domains and many kinds. Each document has one split.

``packaged_texts/SOURCES.md`` says where they come from and under which licences.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pruning.data.corpora import Split
from pruning.spec.calibration import Dataset

FOLDER = Path(__file__).with_name("packaged_texts")


@dataclass(frozen=True)
class PackagedDocument:
    """A text, the work that it is from, the only split that may use it, and the kind of text."""

    text: str
    source: str
    split: Split
    kind: str


@cache
def packaged_documents(dataset: Dataset) -> Mapping[Split, Mapping[str, tuple[str, ...]]]:
    """The texts of a packaged data set by split and kind."""
    documents = read_documents(FOLDER / f"{dataset.value}.jsonl.gz")
    kinds = dict.fromkeys(document.kind for document in documents)
    return {
        split: {
            kind: tuple(each.text for each in documents if (each.split, each.kind) == (split, kind))
            for kind in kinds
        }
        for split in Split
    }


def read_documents(path: Path) -> list[PackagedDocument]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [
        PackagedDocument(record["text"], record["source"], Split(record["split"]), record["kind"])
        for record in records
    ]
