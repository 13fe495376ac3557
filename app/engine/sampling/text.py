"""Messages to text by the chat template, and tokens to text, incrementally.

Returned text is final: it has no partial characters, and no part of a possible stop string.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_REPLACEMENT = "\ufffd"  # decoded from bytes that are no character, or not yet one
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # sentencepiece's tokens for single bytes
BEGIN_MESSAGE: Mapping[str, Any] = MappingProxyType({"add_generation_prompt": True})
_MAX_PENDING = 32  # tokens; a character has at most four bytes


class NoChatTemplate(ValueError):
    """The tokenizer has no chat template."""


class MessagesRefused(ValueError):
    """The chat template does not accept these messages, for example their order."""

    param = "messages"


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    arguments: Mapping[str, Any] = BEGIN_MESSAGE,
) -> str:
    """The text before the next message, special tokens included. Not all templates name tools.

    ``arguments`` are those of ``apply_chat_template`` and variables of the template.

    Raises ``NoChatTemplate`` or ``MessagesRefused``.
    """
    check_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            **arguments,
        )
    except Exception as error:  # a template raises whatever its expressions do
        raise MessagesRefused(f"the chat template rejected the messages: {error}") from error
    return str(text)


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ``NoChatTemplate``."""
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            "this model's tokenizer has no chat template: send a prompt instead of messages"
        )


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of a token within a longer text, with its leading space. Special ones by name."""
    decode = decoder(tokenizer, skip_special_tokens=False)
    return decode([token_id] * 2)[len(decode([token_id])) :]


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes | None:
    """The bytes of a token, which may be part of a character; None if they are unknown."""
    text = token_text(tokenizer, token_id)
    if _REPLACEMENT not in text:
        return text.encode()
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(match[1])
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of byte-level BPE
    return bytes(letters[letter] for letter in token) if letters.keys() >= set(token) else None


def decoder(
    tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True
) -> Callable[[list[int]], str]:
    """A function that decodes token ids, without special tokens or with their names.

    ``tokenizer.decode`` takes ten times as long for the same call of its Rust part.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        decode_fast = tokenizer.backend_tokenizer.decode
        return partial(decode_fast, skip_special_tokens=skip_special_tokens)

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text

    return decode


class Detokenizer:
    """Decodes tokens one by one. The results concatenate to the text of all, without special ones
    unless ``skip_special_tokens`` is false.

    A token is decoded after the previous one, since spaces depend on where a text begins.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True
    ) -> None:
        self._decode = decoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._token_ids: list[int] = []  # context, then tokens without returned text
        self._num_context = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._token_ids.append(token_id)
        text = self._pending()
        num_pending = len(self._token_ids) - self._num_context
        if text.endswith(_REPLACEMENT) and num_pending < _MAX_PENDING:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """The remaining text at the end, complete or not."""
        return self._release(self._pending())

    def _pending(self) -> str:
        context = self._decode(self._token_ids[: self._num_context])
        return self._decode(self._token_ids)[len(context) :]

    def _release(self, text: str) -> str:
        if text:
            self._token_ids = self._token_ids[self._num_context :]
            self._num_context = len(self._token_ids)
        return text


class StopStrings:
    """Cuts a text before the first stop string, independently of how the text is split."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The part that is certainly before any stop string."""
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
        """The held text, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """The match that ends first, the longest of several: the same for any split of the text."""
        starts = [(text.find(string), string) for string in self._stop]
        matches = [(start + len(string), start, string) for start, string in starts if start >= 0]
        if not matches:
            return None
        _, start, string = min(matches)
        return start, string

    def _num_held(self, text: str) -> int:
        """Length of the longest suffix of the text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._stop):
                return length
        return 0


class TextStream:
    """Detokenizer and stop strings of one request: tokens in, final text out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(stop)
        self.num_characters = 0  # decoded from all tokens so far, stopped or not

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found. There is no further text then."""
        return self._stop_strings.matched is not None

    def push(self, token_id: int) -> str:
        piece = self._detokenizer.push(token_id)
        self.num_characters += len(piece)
        return self._stop_strings.push(piece)

    def flush(self) -> str:
        """The remaining text, if no stop string ended the request."""
        return self._stop_strings.push(self._detokenizer.flush()) + self._stop_strings.flush()
