"""Compiled grammars of response formats: made in threads, within a deadline, and kept for reuse."""

import asyncio
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase

from app.engine.admission import Overloaded
from app.engine.grammar import Grammar, ResponseFormatRefused, grammar_tokens
from app.engine.sequence import ResponseFormat
from app.engine.variant import Variant

DEADLINE_S = 10.0
MAX_GRAMMARS = 64  # of one tokenizer
MAX_WAITING = 64
_NUM_THREADS = 2


@dataclass(frozen=True)
class _OfTokenizer:
    """What was made for one tokenizer: tokens by vocabulary and ends, and grammars of them."""

    tokens: dict[tuple[int, frozenset[int]], LLTokenizer] = field(default_factory=dict)
    grammars: "OrderedDict[tuple[str, int, frozenset[int]], Future[Grammar]]" = field(
        default_factory=OrderedDict
    )
    lock: Lock = field(default_factory=Lock)  # of tokens


class Grammars:
    """The grammars of recent response formats. Bound to one event loop.

    Those that were refused are kept as well, so that they cost nothing the next time.
    """

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "grammar")
        self._num_open = 0  # requests for one that is not made yet
        self._made: WeakKeyDictionary[PreTrainedTokenizerBase, _OfTokenizer] = WeakKeyDictionary()

    async def get(
        self, response_format: ResponseFormat, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> Grammar:
        """The grammar of this format for the tokens of this variant.

        Raises ``ResponseFormatRefused``, and ``Overloaded`` if too many others are being made.
        """
        future = self._future(response_format.schema, tokenizer, variant)
        if future.done():
            return future.result()
        if self._num_open >= MAX_WAITING:
            raise self._overloaded()
        self._num_open += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            if not future.running() and not future.done():  # others took the time
                raise self._overloaded() from None
            raise ResponseFormatRefused(
                f"this schema takes longer than {self._deadline_s:g} s to compile: simplify it"
            ) from None
        finally:
            self._num_open -= 1

    def _future(
        self, schema: str, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> "Future[Grammar]":
        own = self._made.setdefault(tokenizer, _OfTokenizer())
        key = schema, variant.vocab_size, variant.eos_token_ids
        if key in own.grammars:
            own.grammars.move_to_end(key)
            return own.grammars[key]
        future = self._executor.submit(_compile, own, tokenizer, *key)
        own.grammars[key] = future
        if len(own.grammars) > MAX_GRAMMARS:
            own.grammars.popitem(last=False)
        return future

    def _overloaded(self) -> Overloaded:
        what = f"{self._num_open} requests wait for their schemas to be compiled"
        return Overloaded(what, "grammars_full", 1.0)


def _compile(
    own: _OfTokenizer,
    tokenizer: PreTrainedTokenizerBase,
    schema: str,
    vocab_size: int,
    eos_token_ids: frozenset[int],
) -> Grammar:
    with own.lock:
        key = vocab_size, eos_token_ids
        if key not in own.tokens:
            own.tokens[key] = grammar_tokens(tokenizer, vocab_size, eos_token_ids)
        tokens = own.tokens[key]
    return Grammar(schema, tokens)
