"""Grammars of requests: their schemas are checked in other processes, a share for each client.

A schema is compiled here only after it was compiled there, within limits of time and memory. What
takes long waits apart, so that it delays no usual schema, not even of the same client.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.auth.clients import calling_client
from app.engine.grammar import (
    Grammar,
    ResponseFormatRefused,
    grammar_tokens,
    no_tokens,
    schema_refused,
)
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import ResponseFormat
from app.engine.variant import Variant
from app.generation.limited_process import ProcessEnded
from app.generation.schema_client import SchemaClient, TakesLonger, Vocabulary
from pruning.plural import counted

_Result = TypeVar("_Result")

DEADLINE_S = 10.0  # for a turn
MAX_CHECKED = 128  # schemas that are remembered
MAX_WAITING = 64  # requests of one client
NUM_AT_ONCE = 8
NUM_OF_CLIENT = 2  # at once
USUAL_CPU_S = 0.1
MAX_CPU_S = 1.0
_MAX_TOKEN_BYTES = 1023  # of llguidance


@dataclass(frozen=True)
class _Verdict:
    """What the check of a schema has found: the source of its grammar, or why there is none."""

    source: str = ""
    refusal: str | None = None
    is_long: bool = False


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a tokenizer for one size of vocabulary and its ends."""

    name: str
    vocabulary: Vocabulary
    tokens: LLTokenizer


class Turns:
    """Work of several clients: a few at once, and at most a share of them for one client.

    Each client waits in a line of its own, so a client with much work delays the others little.
    """

    def __init__(self, deadline_s: float, cpu_s: float) -> None:
        self._deadline_s = deadline_s
        self._cpu_s = cpu_s  # of one
        self.executor = ThreadPoolExecutor(NUM_OF_CLIENT, "grammar")
        self._all = asyncio.Semaphore(NUM_AT_ONCE)
        self._of_client: dict[str, asyncio.Semaphore] = {}
        self._num_open: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Raises ``Overloaded`` if too much of this client waits, or waits for too long."""
        if self._num_open[client] >= MAX_WAITING:
            raise self._overloaded(client)
        self._num_open[client] += 1
        own = self._of_client.setdefault(client, asyncio.Semaphore(NUM_OF_CLIENT))
        try:
            try:
                async with asyncio.timeout(self._deadline_s) as deadline, own, self._all:
                    deadline.reschedule(None)  # it is for the wait only
                    yield
            except TimeoutError:
                raise self._overloaded(client) from None
        finally:
            self._num_open[client] -= 1
            if not self._num_open[client]:
                del self._num_open[client], self._of_client[client]

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Do the work of a turn in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)

    def _overloaded(self, client: str) -> Overloaded:
        num_open = self._num_open[client]
        what = f"{counted(num_open, 'schema')} of {client} being compiled or waiting"
        return Overloaded(what, "grammars_full", 1 + num_open * self._cpu_s / NUM_OF_CLIENT)


class Grammars:
    """Bound to one event loop. Remembers by digest which schemas were checked, refused ones too."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._usual = Turns(deadline_s, USUAL_CPU_S)
        self._long = Turns(deadline_s, MAX_CPU_S)
        self._client = SchemaClient()
        self._making: set[asyncio.Task[Any]] = set()
        self._checked: OrderedDict[str, _Verdict] = OrderedDict()
        self._tokens: WeakKeyDictionary[
            PreTrainedTokenizerBase, dict[tuple[int, frozenset[int]], _Tokens]
        ] = WeakKeyDictionary()
        self._prepared: WeakSet[Variant] = WeakSet()
        self._sent: dict[str, asyncio.Task[None]] = {}  # by the names of tokens
        self._lock = Lock()  # of the tokens

    async def get(
        self, response_format: ResponseFormat, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> Grammar:
        """A new grammar of this format for the tokens of this variant.

        Raises ``ResponseFormatRefused``, ``ProcessEnded``, and ``Overloaded`` if too many
        others of the same client are being made.
        """
        making = asyncio.create_task(self._made(response_format, tokenizer, variant))
        self._keep(making)
        return await asyncio.shield(making)  # a client that leaves keeps its turn to the end

    async def prepare(self, tokenizer: PreTrainedTokenizerBase, variant: Variant) -> None:
        """Build the table of these tokens, so that no schema waits for it.

        Nothing else runs in Python meanwhile: 1.5 s for 262,000 tokens, and 0.2 s for 60,000.
        """
        if variant not in self._prepared:
            self._prepared.add(variant)
            with suppress(ResponseFormatRefused):  # a request for a schema says so
                await self._usual.run(partial(self._tokens_of, tokenizer, variant))

    async def _ready(self, tokenizer: PreTrainedTokenizerBase, variant: Variant) -> "_Tokens":
        """The tokens, once the process that checks schemas has their table as well."""
        tokens = await self._usual.run(partial(self._tokens_of, tokenizer, variant))
        if tokens.name not in self._sent:
            preparing = self._client.prepare(tokens.name, tokens.vocabulary)
            self._sent[tokens.name] = asyncio.create_task(preparing)
            self._keep(self._sent[tokens.name])
        with suppress(ProcessEnded):  # another one is started for the schema
            await asyncio.shield(self._sent[tokens.name])
        return tokens

    async def _made(
        self, response_format: ResponseFormat, tokenizer: PreTrainedTokenizerBase, variant: Variant
    ) -> Grammar:
        client = calling_client()
        tokens = await self._ready(tokenizer, variant)  # not in a turn, whose time is limited
        for turns, cpu_s in ((self._usual, USUAL_CPU_S), (self._long, MAX_CPU_S)):
            async with turns.turn(client):
                verdict = self._known(_digest(tokens.name, response_format))
                verdict = verdict or await self._checked_within(cpu_s, response_format, tokens)
                if verdict is None or (verdict.is_long and turns is self._usual):
                    continue
                if verdict.refusal is not None:
                    raise ResponseFormatRefused(
                        verdict.refusal, response_format.param, response_format.what
                    )
                return await turns.run(partial(Grammar, verdict.source, tokens.tokens))
        raise AssertionError("expected a result within the time limit")

    async def _checked_within(
        self, cpu_s: float, wanted: ResponseFormat, tokens: "_Tokens"
    ) -> "_Verdict | None":
        """The verdict, which is remembered; None if it takes longer than that, and may."""
        is_long = cpu_s == MAX_CPU_S
        try:
            source = await self._client.source(wanted, tokens.name, tokens.vocabulary, cpu_s)
            verdict = _Verdict(source, is_long=is_long)
        except ResponseFormatRefused as error:
            verdict = _Verdict(refusal=str(error))
        except TakesLonger:
            if not is_long:
                return None
            refused = schema_refused(f"compiling it takes more than {MAX_CPU_S:g} s")
            verdict = _Verdict(refusal=str(refused))
        self._checked[_digest(tokens.name, wanted)] = verdict
        if len(self._checked) > MAX_CHECKED:
            self._checked.popitem(last=False)
        return verdict

    def _known(self, digest: str) -> "_Verdict | None":
        if digest in self._checked:
            self._checked.move_to_end(digest)
        return self._checked.get(digest)

    async def aclose(self) -> None:
        """Ends what is being made."""
        for making in self._making:
            making.cancel()
        await self._client.aclose()
        for turns in (self._usual, self._long):
            turns.executor.shutdown(wait=False, cancel_futures=True)

    def _keep(self, making: "asyncio.Task[Any]") -> None:
        self._making.add(making)
        making.add_done_callback(self._forget)

    def _forget(self, making: "asyncio.Task[Any]") -> None:
        self._making.discard(making)
        if not making.cancelled():
            making.exception()  # which the caller has, unless it has left

    def _tokens_of(self, tokenizer: PreTrainedTokenizerBase, variant: Variant) -> _Tokens:
        with self._lock:
            own = self._tokens.setdefault(tokenizer, {})
            key = variant.vocab_size, variant.eos_token_ids
            if key not in own:
                own[key] = _tokens(tokenizer, *key)
            return own[key]


def _digest(name: str, wanted: ResponseFormat) -> str:
    return hashlib.sha256(
        repr((name, wanted.what, wanted.schema, wanted.within)).encode()
    ).hexdigest()


def _tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: frozenset[int]
) -> _Tokens:
    """Raises ``ResponseFormatRefused``."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise no_tokens(f"it is a {type(tokenizer).__name__}, and no tokenizer.json")
    known = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    longest = max(len(token.encode()) for token in known)
    if longest > _MAX_TOKEN_BYTES:  # llguidance would panic, after minutes for a very long one
        raise no_tokens(f"a token has {longest} bytes, more than the limit of {_MAX_TOKEN_BYTES}")
    vocabulary = Vocabulary(
        tokenizer.backend_tokenizer.to_str(), vocab_size, tuple(sorted(eos_token_ids))
    )
    tokens = grammar_tokens(vocabulary.tokenizer, vocab_size, vocabulary.eos_token_ids)
    name = hashlib.sha256(repr(vocabulary).encode()).hexdigest()
    return _Tokens(name, vocabulary, tokens)
