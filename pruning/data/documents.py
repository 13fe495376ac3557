"""Documents in splits, and windows that are drawn from as many of them as possible.

Texts that come with the product are documents of three domains and many kinds, each in one split.
``packaged_texts/SOURCES.md`` says where they come from and under which licences.
"""

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
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


def draw(
    documents: Sequence[str],
    num_windows: int,
    seqlen: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> torch.Tensor:
    """Windows ``[num_windows, seqlen]``, or fewer if the documents give no more.

    Passages are tokenized in random order and only as far as needed. Each gives its first window
    before any gives a second one. The first windows of a larger draw are those of a smaller one.
    """
    texts = passages(documents, CHARACTERS_PER_TOKEN * seqlen)
    rng = random.Random(seed)  # noqa: S311 - a reproducible sample, not a secret
    tokenized: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    for windows in windows_of_texts(rng.sample(texts, len(texts)), seqlen, tokenizer):
        tokenized.append(windows)
        chosen.extend(windows[:1])
        if len(chosen) >= num_windows:
            break
    for nth in range(1, max(map(len, tokenized), default=0)):
        if len(chosen) >= num_windows:
            break
        chosen.extend(windows[nth] for windows in tokenized if nth < len(windows))
    empty = torch.empty((0, seqlen), dtype=torch.int64)
    return torch.stack(chosen[:num_windows]) if chosen else empty


def draw_kinds(
    documents: Mapping[str, Sequence[str]],
    num_windows: int,
    seqlen: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Windows as of ``draw``, and the kind of text of each, for documents by kind.

    The kinds take turns as their lengths have them, so any first few windows represent all.
    """
    turns = _turns({kind: sum(map(len, texts)) for kind, texts in documents.items()}, num_windows)
    drawn = {
        kind: list(draw(documents[kind], number, seqlen, seed, tokenizer))
        for kind, number in Counter(turns).items()
    }
    chosen: list[torch.Tensor] = []
    kinds: list[str] = []
    for kind in turns:
        if drawn[kind]:
            chosen.append(drawn[kind].pop(0))
            kinds.append(kind)
    empty = torch.empty((0, seqlen), dtype=torch.int64)
    return (torch.stack(chosen) if chosen else empty), tuple(kinds)


def _turns(sizes: Mapping[str, int], number: int) -> list[str]:
    """A kind for each turn, so that every kind has its share of any first turns."""
    total, taken = max(1, sum(sizes.values())), Counter[str]()
    turns = []
    for turn in range(1, number + 1):
        kind = max(sizes, key=lambda name: sizes[name] / total * turn - taken[name])
        taken[kind] += 1
        turns.append(kind)
    return turns


def passages(documents: Sequence[str], min_characters: int) -> list[str]:
    """Texts of this many characters, and less than twice as many where lines allow it.

    Long documents are cut between lines, or else between words; short ones are joined. Only a text
    that is shorter as a whole gives a shorter passage.
    """
    pieces: list[str] = []
    rest = ""
    for document in documents:
        rest = f"{rest}{SEPARATOR}{document}" if rest else document
        while len(rest) >= 2 * min_characters:
            at = _boundary(rest, min_characters)
            pieces.append(rest[:at])
            rest = rest[at:].lstrip("\n")
        if len(rest) >= min_characters:
            pieces.append(rest)
            rest = ""
    if rest and pieces:
        pieces[-1] += SEPARATOR + rest
    elif rest:
        pieces.append(rest)
    return pieces


def _boundary(text: str, min_characters: int) -> int:
    """Where to cut, from this many characters on and before twice as many."""
    for separator in ("\n", " "):
        at = text.rfind(separator, min_characters, 2 * min_characters)
        if at > 0:
            return at
    return min_characters
