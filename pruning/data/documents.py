"""Documents in splits, and windows that are drawn from as many of them as possible.

Texts that come with the product are documents of three domains and many kinds, each in one split.
``packaged_texts/SOURCES.md`` says where they come from and under which licences.
"""

import gzip
import hashlib
import json
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pruning.data.corpora import Split
from pruning.data.windows import windows_of_texts
from pruning.spec.calibration import Dataset

FOLDER = Path(__file__).with_name("packaged_texts")
CHARACTERS_PER_TOKEN = 8  # more than a tokenizer makes of its language
SEPARATOR = "\n\n"  # between short documents that are joined
_SHARES: Mapping[Split, float] = {
    Split.CALIBRATION: 0.6,
    Split.SELECTION: 0.2,
    Split.EVALUATION: 0.2,
}


@cache
def packaged_documents(dataset: Dataset) -> Mapping[Split, Mapping[str, Sequence[str]]]:
    """The texts of a packaged data set by split and kind."""
    with gzip.open(FOLDER / f"{dataset.value}.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    texts = {split: {each["kind"]: list[str]() for each in documents} for split in Split}
    for each in documents:
        texts[Split(each["split"])][each["kind"]].append(each["text"])
    return texts


def split_documents(documents: Sequence[str]) -> dict[Split, list[str]]:
    """The documents of each split. It depends on their texts alone; equal ones count once."""
    by_hash = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    ends = [round(share * len(by_hash)) for share in accumulate(_SHARES.values())]
    return {
        split: by_hash[start:end]
        for split, (start, end) in zip(_SHARES, pairwise([0, *ends]), strict=True)
    }


@dataclass(frozen=True)
class Passage:
    """A part of a document, or several short documents that were joined.

    ``document`` is the place of the document. Documents that share a passage have one place.
    """

    text: str
    document: int


@dataclass(frozen=True)
class Drawn:
    """Windows ``[num_windows, seqlen]``, with the kind and the document of each."""

    token_ids: torch.Tensor
    kinds: tuple[str, ...]
    documents: tuple[str, ...]


def draw(
    documents: Sequence[str],
    num_windows: int,
    seqlen: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[tuple[torch.Tensor, int]]:
    """Windows ``[seqlen]``, each with its document, or fewer if the documents give no more.

    Passages are tokenized in random order and only as far as needed. Each gives its first window
    before any gives a second one. The first windows of a larger draw are those of a smaller one.
    """
    found = passages(documents, CHARACTERS_PER_TOKEN * seqlen)
    rng = random.Random(seed)  # noqa: S311 - a reproducible sample, not a secret
    shuffled = rng.sample(found, len(found))
    by_passage = windows_of_texts((each.text for each in shuffled), seqlen, tokenizer)
    tokenized: list[tuple[torch.Tensor, int]] = []
    chosen: list[tuple[torch.Tensor, int]] = []
    for passage, windows in zip(shuffled, by_passage, strict=True):
        tokenized.append((windows, passage.document))
        chosen.extend((window, passage.document) for window in windows[:1])
        if len(chosen) >= num_windows:
            break
    for nth in range(1, max((len(windows) for windows, _ in tokenized), default=0)):
        if len(chosen) >= num_windows:
            break
        chosen.extend((of[nth], document) for of, document in tokenized if nth < len(of))
    return chosen[:num_windows]


def draw_kinds(
    documents: Mapping[str, Sequence[str]],
    num_windows: int,
    seqlen: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Drawn:
    """Windows as of ``draw``, of documents by kind.

    The kinds take turns as their lengths have them, so any first few windows represent all.
    """
    turns = _turns({kind: sum(map(len, texts)) for kind, texts in documents.items()}, num_windows)
    drawn = {
        kind: deque(draw(documents[kind], number, seqlen, seed, tokenizer))
        for kind, number in Counter(turns).items()
    }
    chosen = [(*drawn[kind].popleft(), kind) for kind in turns if drawn[kind]]
    empty = torch.empty((0, seqlen), dtype=torch.int64)
    return Drawn(
        token_ids=torch.stack([window for window, _, _ in chosen]) if chosen else empty,
        kinds=tuple(kind for _, _, kind in chosen),
        documents=tuple(f"{kind} {document}" for _, document, kind in chosen),
    )


def _turns(sizes: Mapping[str, int], number: int) -> list[str]:
    """A kind for each turn, so that every kind has its share of any first turns."""
    total, taken = max(1, sum(sizes.values())), Counter[str]()
    turns = []
    for turn in range(1, number + 1):
        kind = max(sizes, key=lambda name: sizes[name] / total * turn - taken[name])
        taken[kind] += 1
        turns.append(kind)
    return turns


def passages(documents: Sequence[str], min_characters: int) -> list[Passage]:
    """Texts of this many characters, and less than twice as many where lines allow it.

    Long documents are cut between lines, or else between words; short ones are joined. Only a text
    that is shorter as a whole gives a shorter passage.
    """
    pieces: list[Passage] = []
    rest, first = "", 0
    for number, document in enumerate(documents):
        rest, first = (f"{rest}{SEPARATOR}{document}", first) if rest else (document, number)
        while len(rest) >= 2 * min_characters:
            at = _boundary(rest, min_characters)
            pieces.append(Passage(rest[:at], first))
            rest = rest[at:].lstrip("\n")
        if len(rest) >= min_characters:
            pieces.append(Passage(rest, first))
            rest = ""
    if rest and pieces:
        last = pieces.pop()
        rest, first = last.text + SEPARATOR + rest, last.document
    return [*pieces, Passage(rest, first)] if rest else pieces


def _boundary(text: str, min_characters: int) -> int:
    """Where to cut, from this many characters on and before twice as many."""
    for separator in ("\n", " "):
        at = text.rfind(separator, min_characters, 2 * min_characters)
        if at > 0:
            return at
    return min_characters
