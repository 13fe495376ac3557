"""Generation by the engine of this process: text to tokens, streams, and tokens to text."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from hashlib import sha256
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from app.auth.keys import calling_tenant
from app.config import PrefixCache
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.engine import NotYetReproducible, PromptLimit, PromptTooLong
from app.engine.grammar import ResponseFormatRefused
from app.engine.sampling.stream import Stream
from app.engine.sampling.text import TextStream
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import (
    MAX_NEW_TOKENS,
    FinishReason,
    InvalidSampling,
    Request,
    RequestRefused,
    SamplingParams,
    TokenEvent,
)
from app.generation.calls import CallFinder, call_finder
from app.generation.grammars import Grammars
from app.generation.output import (
    CallPart,
    Completions,
    GenerationFailed,
    Output,
    OutputStream,
    Token,
)
from app.generation.request import GenerationRequest, Prompt
from app.generation.tokenization import Rendered, TokenIds, TokenizerPool
from app.metrics.metrics import Labels, Metrics, labels_of
from app.models.entry import ModelEntry
from app.models.registry import ServedModel

logger = logging.getLogger(__name__)

# the errors of a generation by the engine of this process
ENGINE_RAISES = (
    InvalidSampling,
    ResponseFormatRefused,
    PromptTooLong,
    RequestRefused,
    Overloaded,
    EngineStopped,
    NotYetReproducible,
    GenerationFailed,
)

# the place of the current request while its model and its prompts are unknown
_unparsed: ContextVar[ExitStack | None] = ContextVar("unparsed", default=None)


class EngineBackend:
    """Generates the outputs of a request as one batch."""

    def __init__(
        self, engine: AsyncEngine, metrics: Metrics, prefix_cache: PrefixCache = "on"
    ) -> None:
        self._engine = engine
        self._prefix_cache = prefix_cache
        self._metrics = metrics
        self._tokenizers = TokenizerPool()
        self._grammars = Grammars()
        self.completions = Completions()

    async def aclose(self) -> None:
        await self._tokenizers.aclose()
        await self._grammars.aclose()

    async def prepare(self, served: ServedModel) -> None:
        """Build what the first messages and the first schema of this model would wait for."""
        await self._tokenizers.prepare(served.tokenizer)
        await self._grammars.prepare(served.tokenizer, served.variant)

    def check_room(self) -> None:
        """Raise ``Overloaded`` if no request would be admitted now."""
        with self._counted_refusals():
            self._engine.admission.check_room(1)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Hold a place while a request is parsed and its model is found.

        ``start`` takes it over within the context. Raises ``Overloaded``.
        """
        with self._counted_refusals():
            place = self._engine.admission.reserve(1)
        token = _unparsed.set(place)
        try:
            yield
        finally:
            _unparsed.reset(token)
            place.close()

    @contextmanager
    def _counted_refusals(self) -> Iterator[None]:
        try:
            yield
        except Overloaded as refusal:
            self._metrics.rejected_unparsed(refusal.reason)
            raise

    async def start(
        self, request: GenerationRequest, served: ServedModel, deadline_s: float | None
    ) -> list[OutputStream]:
        """Hand all outputs of the request to the engine, or none.

        Raises ``RequestRefused``, ``ResponseFormatRefused``, ``Overloaded`` or ``EngineStopped``,
        and the errors of ``render_chat``.
        """
        labels = labels_of(served.entry, request.traffic)
        try:
            streams = await self._streams(request, served, deadline_s, labels)
        except Overloaded as refusal:
            self._metrics.rejected(labels, refusal.reason)
            raise
        self._metrics.admitted(labels)
        return [
            EngineOutputStream(
                index,
                stream,
                TextStream(served.tokenizer, request.stop),
                self._metrics.token_gaps(labels),
                self.completions.publisher(one, stream.request.prompt_ids, stream.request.grammar),
                call_finder(one.prompts[0], served.tokenizer),
            )
            for index, (one, stream) in enumerate(streams)
        ]

    def fingerprint(self, served: ServedModel, params: SamplingParams) -> str:
        """OpenAI's ``system_fingerprint``: another one where outputs may differ."""
        kernels = self._engine.kernels_digest(is_reproducible=params.reproducible)
        return f"fp_{sha256(f'{served.digest} {kernels}'.encode()).hexdigest()[:12]}"

    async def encode(
        self, prompts: Sequence[Prompt], served: Sequence[ServedModel], max_new_tokens: int
    ) -> list[TokenIds]:
        """Token ids of each prompt, for all of these variants, which share a tokenizer.

        Raises ``PromptTooLong``, ``Overloaded``, and the errors of ``render_chat``.
        """
        variant = min((one.variant for one in served), key=self._engine.max_len)
        limit = PromptLimit(variant.name, self._engine.max_len(variant), max_new_tokens)
        return await self._tokenizers.encode(prompts, served[0].tokenizer, limit)

    async def tokenize(
        self, prompt: Prompt | Rendered, tokenizer: PreTrainedTokenizerBase, entry: ModelEntry
    ) -> TokenIds:
        """Token ids of a prompt that nothing is generated for. Raises as ``encode`` does."""
        max_len = entry.info.max_positions if entry.info else None
        limit = PromptLimit(entry.name, max_len or MAX_NEW_TOKENS, 0)
        [ids] = await self._tokenizers.encode([prompt], tokenizer, limit)
        return ids

    async def _streams(
        self,
        request: GenerationRequest,
        served: ServedModel,
        deadline_s: float | None,
        labels: Labels,
    ) -> list[tuple[GenerationRequest, Stream]]:
        """The request for each output alone, and the stream of its events.

        Places are reserved while prompts are tokenized. A schema is compiled, which may take long,
        only for a request that nothing else refuses.
        """
        if (unparsed := _unparsed.get()) is not None:
            unparsed.close()
        max_new_tokens = 1 if request.fills_context else request.params.max_new_tokens
        with self._engine.admission.reserve(len(request.prompts) * request.n) as places:
            prompts = await self.encode(request.prompts, [served], max_new_tokens)
            alone = request.alone(prompts, self._engine.max_len(served.variant))
            engine_requests = [
                Request(
                    f"gen-{uuid4().hex}",
                    served.variant,
                    ids,
                    one.params,
                    deadline_s=deadline_s,
                    cache_scope=request.cache_scope(self._prefix_cache),
                    tenant=calling_tenant(),
                )
                for one, ids in alone
            ]
            self._engine.check(engine_requests)
            if (wanted := request.params.response_format) is not None:
                grammar = await self._grammars.get(wanted, served.tokenizer, served.variant)
                engine_requests = [replace(each, grammar=grammar) for each in engine_requests]
            places.close()
            streams = self._engine.streams(engine_requests, partial(self._count, labels))
            return [(one, stream) for (one, _), stream in zip(alone, streams, strict=True)]

    def _count(self, labels: Labels, request: Request, last: TokenEvent) -> None:
        assert last.finish_reason is not None
        assert last.timings is not None
        try:
            self._metrics.finished(
                labels, len(request.prompt_ids), last.finish_reason, last.timings
            )
        except Exception:  # the events of other requests are still to be delivered
            logger.exception("request %s is not counted", request.request_id)


class EngineOutputStream(OutputStream):
    """Gathers the events of one request until its end or a stop string."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        text: TextStream,
        on_gap: Callable[[float], None] | None = None,
        on_done: Callable[[Output], None] | None = None,
        finder: CallFinder | None = None,
    ) -> None:
        super().__init__(index, len(stream.request.prompt_ids))
        self.has_begun = True
        self._stream = stream
        self._detokenized = text
        self._on_gap = on_gap  # called with the seconds between two tokens
        self._on_done = on_done
        self._finder = finder
        self._last_token_s: float | None = None

    def start(self, notify: Callable[[], None]) -> None:
        """``failure`` is ``GenerationFailed``, ``ResponseFormatRefused`` or ``EngineStopped``."""

        def receive(event: TokenEvent | Exception) -> None:
            try:
                self._receive(event)
            except Exception as error:  # noqa: BLE001 - raised where the output is awaited
                self.failure = error
                self._stream.cancel()
            notify()

        self._stream.subscribe(receive)

    def _receive(self, event: TokenEvent | Exception) -> None:
        if self.failure is not None:
            return
        if isinstance(event, Exception):
            raise event
        self._prompt += event.prompt
        if event.token_id is not None and not self._detokenized.is_stopped:
            self._add_token(event.token_id, event)
        if event.finish_reason is not None:
            self._end(event.finish_reason, event)
        elif self._detokenized.is_stopped:
            self._stream.cancel(FinishReason.STOP)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _add_token(self, token_id: int, event: TokenEvent) -> None:
        offset = self._detokenized.num_characters
        self._tokens.append(
            Token(token_id, event.is_text, offset, event.logprob, event.top_logprobs)
        )
        self._num_tokens += 1
        if event.is_text:
            self._add_text(self._detokenized.push(token_id))
        now_s = asyncio.get_running_loop().time()
        if self._last_token_s is not None and self._on_gap is not None:
            self._on_gap(now_s - self._last_token_s)
        self._last_token_s = now_s

    def _add_text(self, text: str) -> None:
        if self._finder is None:
            self._text.append(text)
        else:
            self._add_found(*self._finder.push(text))

    def _add_found(self, text: str, calls: Sequence[CallPart]) -> None:
        self._text.append(text)
        self._calls += calls

    def _end(self, reason: FinishReason, last: TokenEvent) -> None:
        assert last.timings is not None
        if last.failure is not None:
            wanted = self._stream.request.params.response_format
            assert wanted is not None
            raise ResponseFormatRefused(last.failure, wanted.param, wanted.what)
        if reason is FinishReason.ERROR:
            raise GenerationFailed("the engine failed on this request: see the service log")
        if not self._detokenized.is_stopped:
            self._add_text(self._detokenized.flush())
        if self._finder is not None:
            self._add_found(*self._finder.flush())
        self._finish(self._finish_reason(reason, last), last.timings)
        if self._on_done is not None:
            self._on_done(self.output)

    def _finish_reason(self, reason: FinishReason, last: TokenEvent) -> FinishReason:
        """STOP by a schema, of the whole output or of a call, means that it is fulfilled. An output
        that is cut before has LENGTH."""
        is_cut, request = self._detokenized.is_stopped, self._stream.request
        if not is_cut and reason is not FinishReason.STOP:
            return reason
        if self._finder is not None and self._finder.is_within_arguments:
            return FinishReason.LENGTH
        if request.grammar is None or self._finder is not None:
            return FinishReason.STOP
        is_end = not is_cut and last.token_id in request.variant.eos_token_ids
        return FinishReason.STOP if is_end else FinishReason.LENGTH
