"""Forms in which text often comes, made of packaged prose: cut into words, and quoted in replies.

Benchmarks of language models, such as WikiText-2 and Penn Treebank, are cut into words, and rare
words are ``<unk>``. Mails and forums quote what they reply to. A fit to text as it was printed
gives back little of what a removal costs there.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain, cycle

from pruning.data.corpora import Split
from pruning.data.documents import packaged_documents
from pruning.spec.calibration import Dataset

_MIN_CHARACTERS = 40  # of a paragraph
_RARE = 2  # words that are no more frequent are unknown
_MARKED = re.compile(r"(?<=\w)-(?=\w)|(?<=\d)[.,](?=\d)")  # within a word or a number
_APART = re.compile(
    r"""(?<=\w)(?:'s|'re|'ve|'ll|n't)\b|(?<!@)[,;:!?()"\[\]](?!@)|--"""
    r"""|(?<=[^\s.]{2})\.(?=\W*(?:\s|$))"""  # the end of a sentence, and not of "e.g."
)
_REPLIES = (("", 72), ("> ", 72), ("", 64), ("> > ", 76), (">", 72))  # marks, and widths of lines


@cache
def prose_forms() -> Mapping[str, Sequence[str]]:
    """Documents of two further kinds, made of the calibration documents of packaged prose: an
    encyclopaedia with words apart, and questions with answers as quotes."""
    prose = packaged_documents(Dataset.PROSE)[Split.CALIBRATION]
    return {
        "words apart": words_apart(prose["encyclopaedia"]),
        "quotes": [quoted(text) for text in prose["questions"]],
    }


def words_apart(texts: Sequence[str]) -> list[str]:
    """The texts as in word-level benchmarks: a paragraph is a line, words and punctuation stand
    apart, a hyphen within a word is ``@-@``, and a word that these texts rarely have ``<unk>``.
    """
    cut = [[_cut(paragraph) for paragraph in _paragraphs(text)] for text in texts]
    number = Counter(chain.from_iterable(chain.from_iterable(cut)))

    def known(word: str) -> str:
        return "<unk>" if word.isalpha() and number[word] <= _RARE else word

    return [" \n ".join(" ".join(map(known, words)) for words in paragraphs) for paragraphs in cut]


def quoted(text: str) -> str:
    """The text as a discussion: paragraphs of short lines, most of them quoted once or twice."""
    replies = zip(cycle(_REPLIES), _paragraphs(text), strict=False)
    return "\n\n".join(
        textwrap.fill(paragraph, width, initial_indent=mark, subsequent_indent=mark)
        for (mark, width), paragraph in replies
    )


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each on a line. Short ones, as headings, are left out."""
    lines = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [line for line in lines if len(line) >= _MIN_CHARACTERS]


def _cut(paragraph: str) -> list[str]:
    marked = _MARKED.sub(lambda found: f" @{found[0]}@ ", paragraph)
    return _APART.sub(lambda found: f" {found[0]} ", marked).split()
