"""Requests with prompts and outputs of exact lengths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from app.engine.sampling.text import token_text

_WORD = re.compile(" [a-z]+")
_MAX_WORDS = 256  # to compose prompts of


class NoSuchPrompt(ValueError):
    """The tokenizer cannot make a prompt of the requested length."""


@dataclass(frozen=True)
class SampleRequest:
    """One request. The text encodes to ``prompt_ids``."""

    text: str
    prompt_ids: tuple[int, ...]
    num_new_tokens: int


class Prompts:
    """Composes prompts of random words that are one token each, so that lengths are exact."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = Random(seed)  # noqa: S311 - no secret
        self._words = self._find_words()

    def uniform(self, num_requests: int, prompt_len: int, output_len: int) -> list[SampleRequest]:
        return [self._request(prompt_len, output_len) for _ in range(num_requests)]

    def mixed(
        self, num_requests: int, prompt_lens: tuple[int, int], output_lens: tuple[int, int]
    ) -> list[SampleRequest]:
        """Lengths drawn uniformly from these ranges, ends included."""
        draw = self._random.randint
        return [self._request(draw(*prompt_lens), draw(*output_lens)) for _ in range(num_requests)]

    def _request(self, prompt_len: int, output_len: int) -> SampleRequest:
        num_special = len(self._encode(""))
        words = self._random.choices(self._words, k=max(prompt_len - num_special, 1))
        # Some tokenizers add a leading space.
        for text in ("".join(words), "".join(words)[1:]):
            if len(ids := self._encode(text)) == prompt_len:
                return SampleRequest(text, ids, output_len)
        raise NoSuchPrompt(
            f"this tokenizer makes no prompt of {prompt_len} tokens: try another length"
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, verbose=False).input_ids)

    def _find_words(self) -> Sequence[str]:
        ids = list(range(len(self._tokenizer)))
        self._random.shuffle(ids)
        words: list[str] = []
        for token_id in ids:
            text = token_text(self._tokenizer, token_id)
            if _WORD.fullmatch(text):
                words.append(text)
            if len(words) == _MAX_WORDS:
                break
        if not words:
            raise NoSuchPrompt("this tokenizer has no tokens that are words")
        return words
