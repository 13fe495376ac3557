"""Grammars of requests: their schemas are checked in other processes, a share for each API key.

A schema is compiled here only after it was compiled there, within limits of time and memory.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TypeVar
from weakref import WeakKeyDictionary

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.auth.keys import caller
from app.engine.admission import Overloaded
from app.engine.grammar import Grammar, ResponseFormatRefused, grammar_tokens, no_tokens
from app.engine.sequence import ResponseFormat
from app.engine.variant import Variant
from app.generation.schema_client import SchemaClient, Vocabulary
from app.generation.schema_server import CPU_S
from pruning.plural import counted

DEADLINE_S = 10.0  # for a turn
MAX_CHECKED = 128  # schemas that are remembered
MAX_WAITING = 64  # requests of one key
NUM_AT_ONCE = 8
NUM_OF_KEY = 2  # at once

_Result = TypeVar("_Result")
Verdict = str | ResponseFormatRefused  # the source of the grammar, or why there is none


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a tokenizer for one size of vocabulary and its ends."""

    name: str
    vocabulary: Vocabulary
    tokens: LLTokenizer


class Turns:
    """Work of several keys: a few at once, and at most a share of them for one key.

    Each key waits in a line of its own, so a key with much work delays the others little.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._all = asyncio.Semaphore(NUM_AT_ONCE)
        self._of_key: dict[str | None, asyncio.Semaphore] = {}
        self._num_open: Counter[str | None] = Counter()

    @asynccontextmanager
    async def turn(self, key: str | None) -> AsyncIterator[None]:
        """Raises ``Overloaded`` if too much of this key waits, or waits for too long."""
        if self._num_open[key] >= MAX_WAITING:
            raise self._overloaded(key)
        self._num_open[key] += 1
        own = self._of_key.setdefault(key, asyncio.Semaphore(NUM_OF_KEY))
        try:
            try:
                async with asyncio.timeout(self._deadline_s) as deadline, own, self._all:
                    deadline.reschedule(None)  # it is for the wait only
                    yield
            except TimeoutError:
                raise self._overloaded(key) from None
        finally:
            self._num_open[key] -= 1
            if not self._num_open[key]:
                del self._num_open[key], self._of_key[key]

    def _overloaded(self, key: str | None) -> Overloaded:
        num_open = self._num_open[key]
        whose = "clients without a key" if key is None else "this key"
        what = f"{counted(num_open, 'schema')} of {whose} are compiled or wait for it"
        return Overloaded(what, "grammars_full", 1 + num_open * CPU_S / NUM_OF_KEY)


class Grammars:
    """Bound to one event loop. Remembers by digest which schemas were checked, refused ones too."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._turns = Turns(deadline_s)
        self._executor = ThreadPoolExecutor(NUM_OF_KEY * 2, "grammar")
        self._client = SchemaClient()
        self._making: set[asyncio.Task[Grammar]] = set()
        self._checked: OrderedDict[str, Verdict] = OrderedDict()
        self._tokens: WeakKeyDictionary[
            PreTrainedTokenizerBase, dict[tuple[int, frozenset[int]], _Tokens]
        ] = WeakKeyDictionary()
        self._lock = Lock()  # of the tokens

    async def get(
        self, response_format: ResponseFormat, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> Grammar:
        """A new grammar of this format for the tokens of this variant.

        Raises ``ResponseFormatRefused``, ``SchemaServerEnded``, and ``Overloaded`` if too many
        others of the same API key are being made.
        """
        making = asyncio.create_task(self._made(response_format, tokenizer, variant))
        self._making.add(making)
        making.add_done_callback(self._forget)
        return await asyncio.shield(making)  # a client that leaves keeps its turn to the end

    async def _made(
        self, response_format: ResponseFormat, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> Grammar:
        key = caller.get()
        async with self._turns.turn(None if key is None else key.name):
            tokens = await self._in_thread(partial(self._tokens_of, tokenizer, variant))
            source = await self._source(response_format.schema, tokens)
            return await self._in_thread(partial(Grammar, source, tokens.tokens))

    async def aclose(self) -> None:
        """Ends what is being made."""
        for making in self._making:
            making.cancel()
        await self._client.aclose()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _forget(self, making: "asyncio.Task[Grammar]") -> None:
        self._making.discard(making)
        if not making.cancelled():
            making.exception()  # which the caller has, unless it has left

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _source(self, schema: str, tokens: _Tokens) -> str:
        digest = hashlib.sha256(f"{tokens.name} {schema}".encode()).hexdigest()
        if digest not in self._checked:
            try:
                verdict: Verdict = await self._client.source(schema, tokens.name, tokens.vocabulary)
            except ResponseFormatRefused as error:
                verdict = error
            self._checked[digest] = verdict
            if len(self._checked) > MAX_CHECKED:
                self._checked.popitem(last=False)
        self._checked.move_to_end(digest)
        verdict = self._checked[digest]
        if isinstance(verdict, ResponseFormatRefused):
            raise ResponseFormatRefused(*verdict.args)
        return verdict

    def _tokens_of(self, tokenizer: PreTrainedTokenizerBase, variant: Variant) -> _Tokens:
        with self._lock:
            own = self._tokens.setdefault(tokenizer, {})
            key = variant.vocab_size, variant.eos_token_ids
            if key not in own:
                own[key] = _tokens(tokenizer, *key)
            return own[key]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: frozenset[int]
) -> _Tokens:
    """Takes up to a second. Raises ``ResponseFormatRefused``."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise no_tokens(f"it is a {type(tokenizer).__name__}, and no tokenizer.json")
    vocabulary = Vocabulary(
        tokenizer.backend_tokenizer.to_str(), vocab_size, tuple(sorted(eos_token_ids))
    )
    tokens = grammar_tokens(vocabulary.tokenizer, vocab_size, vocabulary.eos_token_ids)
    name = hashlib.sha256(repr(vocabulary).encode()).hexdigest()
    return _Tokens(name, vocabulary, tokens)
