"""Prompts in, answers out: text, tokens, timings and their metrics around the engine's streams.

Knows no HTTP: what goes wrong is raised as an error of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from app.answer import Answer, GenerationFailed, Output, Piece
from app.engine.admission import Overloaded
from app.engine.async_engine import AsyncEngine
from app.engine.sequence import FinishReason, Request, SamplingParams, TokenEvent
from app.engine.stream import Stream
from app.engine.text import TextStream
from app.metrics import Labels, Metrics
from app.registry import ModelRegistry, ServedModel

_LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Call:
    """What one client asks for: ``n`` answers to each prompt, a text or its token ids.

    The answers to a prompt follow one another; with a seed, each has a seed of its own.
    """

    served: ServedModel
    prompts: Sequence[str | Sequence[int]]
    params: SamplingParams
    stop: Sequence[str] = ()
    n: int = 1
    timeout_s: float | None = None  # what it cuts short ends with TIMEOUT
    fills_context: bool = False  # as many tokens as fit, whatever max_new_tokens says


class Generator:
    """Answers prompts with any variant of the registry, all prompts of a call in one batch."""

    def __init__(
        self,
        registry: ModelRegistry,
        engine: AsyncEngine,
        metrics: Metrics,
        *,
        max_timeout_s: float | None = None,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._max_timeout_s = max_timeout_s

    async def load(self, name: str) -> ServedModel:
        """The variant of this name, off the event loop: reading weights can take minutes."""
        return await asyncio.to_thread(self._registry.get, name)

    async def generate(self, call: Call) -> list[Output]:
        """One output per answer, in their order. Raises what ``open`` and ``news`` do."""
        async with self.open(call) as generation:
            while not generation.is_over:
                await generation.news()
            return generation.outputs

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator["Generation"]:
        """The answers as they grow; leaving it cancels what still runs.

        Raises ``RequestRefused``, ``Overloaded`` or ``EngineStopped`` before anything runs.
        """
        self._engine.check_number(len(call.prompts) * call.n)  # before any work is done
        prompts = await asyncio.to_thread(_tokenize, call)
        requests = self._requests(call, prompts)
        labels = labels_of(call.served)
        try:
            streams = self._engine.streams(requests, partial(self._count, labels))
        except Overloaded as refusal:
            self._metrics.rejected(refusal.reason)
            raise
        generation = Generation(call, streams, partial(self._metrics.token_gap, labels))
        try:
            yield generation
        finally:
            await generation.aclose()

    def _requests(self, call: Call, prompts: Iterable[tuple[int, ...]]) -> list[Request]:
        timeouts_s = [its for its in (call.timeout_s, self._max_timeout_s) if its is not None]
        deadline_s = time.monotonic() + min(timeouts_s) if timeouts_s else None
        return [
            Request(
                f"gen-{uuid4().hex}",
                call.served.variant,
                ids,
                self._params(call, len(ids), number),
                deadline_s=deadline_s,
            )
            for ids in prompts
            for number in range(call.n)
        ]

    def _params(self, call: Call, num_prompt_tokens: int, number: int) -> SamplingParams:
        """Of one of the ``n`` answers to a prompt of that length."""
        params = call.params
        if call.fills_context:
            rest = self._engine.max_len(call.served.variant) - num_prompt_tokens
            params = replace(params, max_new_tokens=max(rest, 1))  # at least what can be refused
        if params.seed is not None and number:
            params = replace(params, seed=(params.seed + number) % (_LAST_SEED + 1))
        return params

    def _count(self, labels: Labels, request: Request, last: TokenEvent) -> None:
        assert last.finish_reason is not None
        assert last.timings is not None
        self._metrics.finished(labels, len(request.prompt_ids), last.finish_reason, last.timings)


class Generation:
    """The answers to one call, growing side by side, and read at whatever pace."""

    def __init__(
        self, call: Call, streams: Sequence[Stream], on_gap: Callable[[float], None]
    ) -> None:
        self._streams = streams
        self._on_gap = on_gap
        self._answers = [
            Answer(
                index,
                len(stream.request.prompt_ids),
                TextStream(call.served.tokenizer, call.stop),
            )
            for index, stream in enumerate(streams)
        ]
        self._has_news = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._follow(answer, stream))
            for answer, stream in zip(self._answers, streams, strict=True)
        ]
        for task in self._tasks:
            task.add_done_callback(lambda _task: self._has_news.set())

    @property
    def is_over(self) -> bool:
        """Whether ``news`` has told the end of every answer."""
        return all(answer.is_taken for answer in self._answers)

    @property
    def outputs(self) -> list[Output]:
        """The finished answers, once it is over."""
        return [answer.output for answer in self._answers]

    async def news(self) -> list[Piece]:
        """What is new, an answer a piece; waits for it. Whoever stops waiting loses nothing.

        Raises ``GenerationFailed`` or ``EngineStopped`` if one of the answers cannot be finished.
        """
        pieces: list[Piece] = []
        while not pieces and not self.is_over:
            await self._has_news.wait()
            self._has_news.clear()
            for task in self._tasks:
                if task.done():
                    task.result()
            pieces = [piece for answer in self._answers if (piece := answer.take())]
        return pieces

    async def aclose(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()
        for stream in self._streams:
            await stream.aclose()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, answer: Answer, stream: Stream) -> None:
        async for event in stream:
            if (gap_s := answer.add(event)) is not None:
                self._on_gap(gap_s)
            if answer.is_stopped:
                stream.cancel(FinishReason.STOP)
            self._has_news.set()
            if event.finish_reason is not None:
                return
        raise GenerationFailed("the engine ended this request without a word; try again")


def labels_of(served: ServedModel) -> Labels:
    return Labels(served.entry.name, is_pruned=served.entry.num_removed > 0)


def _tokenize(call: Call) -> list[tuple[int, ...]]:
    """Token ids of every prompt; texts get the special tokens that the model begins with."""
    texts = [prompt for prompt in call.prompts if isinstance(prompt, str)]
    encoded = iter(call.served.tokenizer(texts, verbose=False).input_ids if texts else ())
    return [tuple(next(encoded) if isinstance(prompt, str) else prompt) for prompt in call.prompts]
