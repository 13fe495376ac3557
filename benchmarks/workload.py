"""What every side is asked: prompts of so many tokens, and answers of forced lengths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from app.engine.text import token_text

_WORD = re.compile(" [a-z]+")
_ENOUGH = 256  # words to make prompts of


class NoSuchPrompt(ValueError):
    """The tokenizer makes no prompt of the wanted length."""


@dataclass(frozen=True)
class Ask:
    """One request; the text is for those that take no token ids, and has just these."""

    text: str
    prompt_ids: tuple[int, ...]
    num_new_tokens: int


class Prompts:
    """Random words of a tokenizer that are one token each, so that lengths are exact."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = Random(seed)  # noqa: S311 - no secret
        self._words = self._find_words()

    def uniform(self, num_requests: int, prompt_len: int, output_len: int) -> list[Ask]:
        return [self._ask(prompt_len, output_len) for _ in range(num_requests)]

    def mixed(
        self, num_requests: int, prompt_lens: tuple[int, int], output_lens: tuple[int, int]
    ) -> list[Ask]:
        """Lengths drawn evenly between these, both included."""
        draw = self._random.randint
        return [self._ask(draw(*prompt_lens), draw(*output_lens)) for _ in range(num_requests)]

    def _ask(self, prompt_len: int, output_len: int) -> Ask:
        num_special = len(self._encode(""))
        words = self._random.choices(self._words, k=max(prompt_len - num_special, 1))
        # With and without a leading space, as some tokenizers add one.
        for text in ("".join(words), "".join(words)[1:]):
            if len(ids := self._encode(text)) == prompt_len:
                return Ask(text, ids, output_len)
        raise NoSuchPrompt(
            f"words of this tokenizer do not add up to {prompt_len} tokens: try another length"
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, verbose=False).input_ids)

    def _find_words(self) -> Sequence[str]:
        ids = list(range(len(self._tokenizer)))
        self._random.shuffle(ids)
        found: list[str] = []
        for token_id in ids:
            text = token_text(self._tokenizer, token_id)
            if _WORD.fullmatch(text):
                found.append(text)
            if len(found) == _ENOUGH:
                break
        if not found:
            raise NoSuchPrompt("this tokenizer has no token that is a word")
        return found
