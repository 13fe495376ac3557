"""Prompts in, answers out: text, tokens, timings and their metrics around the engine's streams.

Knows no HTTP: what goes wrong is raised as an error of its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from app.engine.async_engine import AsyncEngine, Overloaded
from app.engine.engine import RequestRefused
from app.engine.sequence import FinishReason, Request, SamplingParams, Timings, TokenEvent
from app.engine.stream import Stream
from app.engine.text import TextStream
from app.metrics import Labels, Metrics
from app.registry import ModelRegistry, ServedModel


class TooManyPrompts(RequestRefused):
    """One call brings more prompts than the engine ever takes at once."""


class GenerationFailed(RuntimeError):
    """The engine gave up on a request that it had accepted."""


@dataclass(frozen=True)
class Output:
    """One finished answer; ``token_ids`` are all generated ones, an end of sequence included."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    token_ids: tuple[int, ...]
    timings: Timings


class Generator:
    """Answers prompts with any variant of the registry, all prompts of a call in one batch."""

    def __init__(self, registry: ModelRegistry, engine: AsyncEngine, metrics: Metrics) -> None:
        self._registry = registry
        self._engine = engine
        self._metrics = metrics

    async def load(self, name: str) -> ServedModel:
        """The variant of this name, off the event loop: reading weights can take minutes."""
        return await asyncio.to_thread(self._registry.get, name)

    async def generate(
        self,
        served: ServedModel,
        prompts: Sequence[str],
        params: SamplingParams,
        stop: Sequence[str] = (),
    ) -> list[Output]:
        """One output per prompt, in their order.

        Raises ``RequestRefused``, ``Overloaded``, ``EngineStopped`` before anything runs, and
        ``GenerationFailed``. Cancelling the task, or one failure, cancels every prompt.
        """
        prompt_ids = await asyncio.to_thread(_tokenize, served, prompts)
        requests = [
            Request(f"gen-{uuid4().hex}", served.variant, ids, params) for ids in prompt_ids
        ]
        streams = self._admit(requests)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._collect(served, request, stream, stop))
                    for request, stream in zip(requests, streams, strict=True)
                ]
        except* GenerationFailed as failures:
            raise failures.exceptions[0] from None
        finally:
            for stream in streams:
                await stream.aclose()
        return [task.result() for task in tasks]

    def _admit(self, requests: Sequence[Request]) -> list[Stream]:
        """All of them or none: half an answer would be of no use."""
        if len(requests) > (most := self._engine.max_open):
            raise TooManyPrompts(
                f"{len(requests)} prompts in one request: this service takes {most} at most, "
                f"running and waiting; send fewer at once"
            )
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self._engine.stream(request))  # noqa: PERF401 - undone below
        except Exception as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, Overloaded):
                self._metrics.rejected("queue_full")
            raise
        return streams

    async def _collect(
        self, served: ServedModel, request: Request, stream: Stream, stop: Sequence[str]
    ) -> Output:
        answer = _Answer(TextStream(served.tokenizer, stop))
        labels = Labels(served.entry.name, is_pruned=served.entry.num_removed > 0)
        async for event in stream:
            if (gap_s := answer.add(event)) is not None:
                self._metrics.token_gap(labels, gap_s)
            if answer.is_stopped:
                stream.cancel()
            if event.finish_reason is not None:
                assert event.timings is not None
                output = answer.output(event, len(request.prompt_ids))
                self._metrics.finished(
                    labels, len(request.prompt_ids), output.finish_reason, output.timings
                )
                return output
        raise GenerationFailed("the engine ended this request without a word; try again")


class _Answer:
    """Gathers the events of one request until it ends or a stop string appears."""

    def __init__(self, text: TextStream) -> None:
        self._text = text
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._last_token_s: float | None = None

    @property
    def is_stopped(self) -> bool:
        return self._text.is_stopped

    def add(self, event: TokenEvent) -> float | None:
        """Take the next token; returns the seconds since the one before it."""
        if event.token_id is None or self.is_stopped:
            return None
        self._token_ids.append(event.token_id)
        if event.is_text:
            self._pieces.append(self._text.push(event.token_id))
        now_s = asyncio.get_running_loop().time()
        last_s, self._last_token_s = self._last_token_s, now_s
        return None if last_s is None else now_s - last_s

    def output(self, last: TokenEvent, num_prompt_tokens: int) -> Output:
        reason = last.finish_reason
        assert reason is not None
        assert last.timings is not None
        if reason is FinishReason.ERROR:
            raise GenerationFailed("the engine failed on this request; its log says why")
        text = "".join(self._pieces) + ("" if self.is_stopped else self._text.flush())
        if self.is_stopped:
            reason = FinishReason.STOP
        return Output(text, reason, num_prompt_tokens, tuple(self._token_ids), last.timings)


def _tokenize(served: ServedModel, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    encoded = served.tokenizer(list(prompts), verbose=False)
    return [tuple(ids) for ids in encoded.input_ids]
