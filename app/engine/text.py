"""Messages to tokens by the chat template, and tokens to text, piece by piece.

What is handed out is final: never half a character, nor part of what may become a stop string.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no character, or not yet one
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # of sentencepiece, for what has no other token
_MAX_PENDING = 32  # tokens; a character has four bytes, so more than this is never one


class NoChatTemplate(ValueError):
    """The tokenizer does not say how messages become a prompt."""


class MessagesRefused(ValueError):
    """The chat template does not take these messages, for instance their order."""

    param = "messages"


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[int, ...]:
    """The prompt that asks for the next message. Raises ``NoChatTemplate``, ``MessagesRefused``."""
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            "this model's tokenizer has no chat template: send a prompt instead of messages"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise MessagesRefused(f"the chat template cannot render them: {error}") from error
    # The template writes the special tokens itself.
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """What a token is inside of a text, where its leading space counts; special ones by name."""
    once, twice = (
        tokenizer.decode([token_id] * times, clean_up_tokenization_spaces=False) for times in (1, 2)
    )
    return str(twice)[len(str(once)) :]


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes | None:
    """UTF-8 of the token's text; of half a character its bytes, or None if they are not known."""
    text = token_text(tokenizer, token_id)
    if _REPLACEMENT not in text:
        return text.encode()
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(match[1])
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of byte-level BPE
    return bytes(letters[letter] for letter in token) if letters.keys() >= set(token) else None


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Token ids to the tokenizer's text of them without the special ones.

    Around the same call of its Rust part, ``tokenizer.decode`` takes ten times as long.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    return decode


class Detokenizer:
    """Pieces that, put together, are the tokenizer's text of all tokens without the special ones.

    A token is decoded behind the one before it, because what a tokenizer does with spaces depends
    on where a text begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode = decoder(tokenizer)
        self._token_ids: list[int] = []  # context, then what is not handed out yet
        self._num_context = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._token_ids.append(token_id)
        text = self._pending()
        num_pending = len(self._token_ids) - self._num_context
        if text.endswith(_REPLACEMENT) and num_pending < _MAX_PENDING:
            return ""
        return self._hand_out(text)

    def flush(self) -> str:
        """What is left at the end, incomplete or not."""
        return self._hand_out(self._pending())

    def _pending(self) -> str:
        context = self._decode(self._token_ids[: self._num_context])
        return self._decode(self._token_ids)[len(context) :]

    def _hand_out(self, text: str) -> str:
        if text:
            self._token_ids = self._token_ids[self._num_context :]
            self._num_context = len(self._token_ids)
        return text


class StopStrings:
    """Cuts a text in front of the first stop string, however the text arrives."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The part that is certain to be in front of any stop string."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        if match := self._first_match(text):
            start, self.matched = match
            self._held = ""
            return text[:start]
        certain = len(text) - self._num_held(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """The match that is complete first, the longest of several: the same for any pieces."""
        starts = [(text.find(string), string) for string in self._stop]
        matches = [(start + len(string), start, string) for start, string in starts if start >= 0]
        if not matches:
            return None
        _, start, string = min(matches)
        return start, string

    def _num_held(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0


class TextStream:
    """Both together: one request's tokens in, pieces of its answer out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(stop)
        self.num_characters = 0  # that all tokens so far have completed, stopped or not

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: the request can end, there will be no more text."""
        return self._stop_strings.matched is not None

    def push(self, token_id: int) -> str:
        piece = self._detokenizer.push(token_id)
        self.num_characters += len(piece)
        return self._stop_strings.push(piece)

    def flush(self) -> str:
        """The rest, when the request has ended by itself."""
        return self._stop_strings.push(self._detokenizer.flush()) + self._stop_strings.flush()
