"""Prompts to token ids: in threads, and with bounded memory.

A tokenizer needs up to 200 bytes for each byte of text. So a text is refused unread if its length
alone rules it out, and the bytes in work at the same time are limited. Tokens are counted before
Python makes a list of them.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.engine.engine import PromptLimit
from app.engine.sampling.text import render_chat
from app.engine.scheduling.admission import Overloaded
from app.generation.request import Chat, Prompt
from app.generation.template_client import TemplateClient
from pruning.environment import is_sandboxed

MAX_BYTES_IN_WORK = 2**20  # a longer text is encoded alone
MAX_BYTES_WAITING = 2**26
_SHORT_BYTES = 2**14  # shorter ones do not wait for long ones
_MESSAGE_BYTES = 256  # of a message beside its content
_NUM_THREADS = 2
_USUAL_BYTES_PER_S = 2**20
_MAX_NFC_SHRINKAGE = 4  # characters that become one (Unicode FAQ on normalization)
_LOSSLESS_SPLITS = ("ByteLevel", "Metaspace", "Digits")

_APPLY = PreTrainedTokenizerBase.apply_chat_template

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """A text that gets no special tokens, such as messages as the chat template has them."""

    text: str


class TokenizerPool:
    """Encodes prompts in few threads. Bound to the event loop of its first use."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "tokenizer")
        self._templates = TemplateClient()
        self._num_free = MAX_BYTES_IN_WORK
        self._freed = asyncio.Event()
        self._turn = asyncio.Lock()  # first come, first served
        self._num_waiting = 0  # bytes

    async def encode(
        self,
        prompts: Sequence[Prompt | Rendered],
        tokenizer: PreTrainedTokenizerBase,
        limit: PromptLimit,
    ) -> list[TokenIds]:
        """Token ids of each prompt. A text gets the special tokens that the model begins with.

        Raises ``PromptTooLong``, ``Overloaded``, and the errors of ``render_chat``.
        """
        num_bytes = max(map(_num_bytes, prompts), default=0)
        rendered = prompts
        if is_sandboxed():
            rendered = [await self._rendered(prompt, tokenizer) for prompt in prompts]
        work = partial(_encode_all, rendered, tokenizer, limit)
        if not num_bytes:
            return work()
        if num_bytes <= _SHORT_BYTES:
            return await asyncio.to_thread(work)
        await asyncio.to_thread(_check_lengths, prompts, tokenizer, limit)
        return await self._in_turn(work, num_bytes)

    async def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start the process that the first messages to this model would wait for."""
        if is_sandboxed() and tokenizer.chat_template:
            await self._templates.start()

    async def aclose(self) -> None:
        await self._templates.aclose()

    async def _rendered(
        self, prompt: Prompt | Rendered, tokenizer: PreTrainedTokenizerBase
    ) -> Prompt | Rendered:
        """The text of messages by a process with limits; what is no chat as it is."""
        is_plain = type(tokenizer).apply_chat_template is _APPLY  # not by code of its own
        if not isinstance(prompt, Chat) or not is_plain:
            return prompt
        return Rendered(await self._templates.render(tokenizer, prompt))

    async def _in_turn(self, work: Callable[[], list[TokenIds]], num_bytes: int) -> list[TokenIds]:
        if self._num_waiting + num_bytes > MAX_BYTES_WAITING:
            what = f"{self._num_waiting} bytes of long prompts are waiting for the tokenizer"
            raise Overloaded(what, "texts_full", 1 + self._num_waiting / _USUAL_BYTES_PER_S)
        taken = min(num_bytes, MAX_BYTES_IN_WORK)
        self._num_waiting += num_bytes
        try:
            async with self._turn:
                while self._num_free < taken:
                    self._freed.clear()
                    await self._freed.wait()
                self._num_free -= taken
                future = self._executor.submit(work)
        finally:
            self._num_waiting -= num_bytes
        # not when the caller is cancelled: its text is in work until the thread is done
        future.add_done_callback(partial(self._release, asyncio.get_running_loop(), taken))
        return await asyncio.wrap_future(future)

    def _release(self, loop: asyncio.AbstractEventLoop, num_bytes: int, _done: Future[Any]) -> None:
        def release() -> None:
            self._num_free += num_bytes
            self._freed.set()

        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(release)


def _num_bytes(prompt: Prompt | Rendered) -> int:
    """The bytes of text to encode; 0 for token ids."""
    if isinstance(prompt, Rendered):
        return _num_bytes(prompt.text)
    if isinstance(prompt, str):
        return len(prompt) if prompt.isascii() else len(prompt.encode())
    if isinstance(prompt, Chat):
        parts = (part for message in prompt.messages for part in message.values())
        texts = (part if isinstance(part, str) else json.dumps(part) for part in parts)
        others = sum(len(json.dumps(each)) for each in (prompt.tools, prompt.chat_template_kwargs))
        return len(prompt.messages) * _MESSAGE_BYTES + sum(map(_num_bytes, texts)) + others
    return 0


def _check_lengths(
    prompts: Sequence[Prompt | Rendered], tokenizer: PreTrainedTokenizerBase, limit: PromptLimit
) -> None:
    """Raise ``PromptTooLong`` for a text that is too long whatever its tokens are."""
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_text(prompt, tokenizer, limit)


def _encode_all(
    prompts: Sequence[Prompt | Rendered], tokenizer: PreTrainedTokenizerBase, limit: PromptLimit
) -> list[TokenIds]:
    return [_encode(prompt, tokenizer, limit) for prompt in prompts]


def _encode(
    prompt: Prompt | Rendered, tokenizer: PreTrainedTokenizerBase, limit: PromptLimit
) -> TokenIds:
    if isinstance(prompt, Chat):
        prompt = Rendered(
            render_chat(tokenizer, prompt.messages, prompt.tools, prompt.template_arguments)
        )
    if not isinstance(prompt, str | Rendered):
        return tuple(prompt)
    is_chat = isinstance(prompt, Rendered)
    text = prompt.text if isinstance(prompt, Rendered) else prompt
    _check_text(text, tokenizer, limit)
    # a chat template writes the special tokens itself
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        ids = tokenizer(text, add_special_tokens=not is_chat, verbose=False).input_ids
        limit.check(len(ids))
        return tuple(ids)
    # ``encode`` would hold the interpreter's lock for the whole text
    [encoding] = _backend(tokenizer).encode_batch_fast([text], add_special_tokens=not is_chat)
    limit.check(len(encoding))
    return tuple(encoding.ids)


def _check_text(text: str, tokenizer: PreTrainedTokenizerBase, limit: PromptLimit) -> None:
    if len(text) > limit.max_len and (minimum := min_tokens(text, tokenizer)):
        limit.check(minimum, is_minimum=True)


@dataclass(frozen=True)
class _Bound:
    """What any text needs, for a tokenizer that drops no other characters than some single ones."""

    max_chars: int  # that one token can stand for
    dropped: str  # characters without a token


_backends: WeakKeyDictionary[PreTrainedTokenizerFast, Tokenizer] = WeakKeyDictionary()
_bounds: WeakKeyDictionary[PreTrainedTokenizerBase, _Bound | None] = WeakKeyDictionary()
_lock = Lock()


def _backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The Rust tokenizer, set once to what a call of ``tokenizer`` sets: it must not be in use."""
    with _lock:
        if tokenizer not in _backends:
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = tokenizer.split_special_tokens
            _backends[tokenizer] = backend
        return _backends[tokenizer]


def min_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The fewest tokens that the text can have by its length; 0 if that is not known.

    Known for BPE over bytes that keeps a text, apart from single characters that have no token.
    Other tokenizers drop white space, or have one token for any unknown word.
    """
    with _lock:
        if tokenizer not in _bounds:
            _bounds[tokenizer] = _measured(tokenizer)
        bound = _bounds[tokenizer]
    if bound is None:
        return 0
    num_kept = len(text) - sum(map(text.count, bound.dropped))
    return -(-num_kept // bound.max_chars)


def _measured(tokenizer: PreTrainedTokenizerBase) -> _Bound | None:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    backend = tokenizer.backend_tokenizer
    normalizers = _parts(backend.normalizer, "normalizers")
    shrinkage = _shrinkage(normalizers)
    splits = _parts(backend.pre_tokenizer, "pretokenizers")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    dropped = _dropped(backend.model, splits, vocabulary)
    added = backend.get_added_tokens_decoder().values()
    if (
        shrinkage is None
        or dropped is None
        or (dropped and any(part["type"] != "NFC" for part in normalizers))  # may make them
        or not all(map(_keeps_text, splits))
        or any(token.lstrip or token.rstrip for token in added)
    ):
        return None
    return _Bound(shrinkage * max(map(len, vocabulary)), dropped)


def _parts(component: Any, key: str) -> list[dict[str, Any]]:  # noqa: ANN401 - of several classes
    """The component, or those that it is a sequence of, as the tokenizer's file has them."""
    if component is None:
        return []
    part: dict[str, Any] = json.loads(component.__getstate__())
    return part[key] if part["type"] == "Sequence" else [part]


def _shrinkage(normalizers: Sequence[Mapping[str, Any]]) -> int | None:
    """By what factor they may shorten a text at most; None if that is not known."""
    factor = 1
    for part in normalizers:
        if part["type"] == "NFC":
            factor *= _MAX_NFC_SHRINKAGE
        elif part["type"] == "Replace":
            replaced = part["pattern"].get("String")
            if replaced is None or len(part["content"]) < len(replaced):
                return None
        elif part["type"] != "Prepend":
            return None
    return factor


def _keeps_text(split: Mapping[str, Any]) -> bool:
    if split["type"] == "Split":
        return bool(split["behavior"] != "Removed")
    return split["type"] in _LOSSLESS_SPLITS


def _dropped(
    model: Any,  # noqa: ANN401 - of several classes
    splits: Sequence[Mapping[str, Any]],
    vocabulary: Mapping[str, int],
) -> str | None:
    """The characters without a token; None if that may be any, or one token stands for many."""
    if type(model).__name__ != "BPE":
        return None
    if any(split["type"] == "ByteLevel" for split in splits):
        letters = bytes_to_unicode()
        known = {byte for byte, letter in letters.items() if letter in vocabulary}
        # beyond ASCII, each character has a byte from 0x80 to 0xBF in UTF-8
        if not known.issuperset(range(0x80, 0xC0)):
            return None
        return "".join(chr(byte) for byte in range(0x80) if byte not in known)
    is_complete = model.byte_fallback and all(f"<0x{n:02X}>" in vocabulary for n in range(256))
    return "" if is_complete else None
