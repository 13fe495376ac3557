"""Generation by other servers: one request for each output, with a usage and an end of its own.

Text is passed on as it arrives. Timings are moments of arrival here.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from app.config import PrefixCache
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import FinishReason, RequestRefused, Timings
from app.generation.openai_chunks import Chunk
from app.generation.openai_client import (
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendRefused,
    ExternalClient,
    OpenAIRequest,
    openai_request,
)
from app.generation.output import Output, OutputStream
from app.generation.request import GenerationRequest, ServedElsewhere, Traffic
from app.metrics.metrics import Labels, Metrics, labels_of
from app.metrics.models import Load
from app.models.entry import ModelEntry
from app.models.external import ExternalModel
from pruning.plural import counted

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_FADE = 0.9  # weight of the previous mean duration when a request ends


class NoPromptLogprobs(RequestRefused):
    """The log-probabilities of a prompt were requested of a model of another server."""

    param = "echo"

    def __init__(self) -> None:
        super().__init__(
            "log probabilities of prompts are not available for models on external "
            "servers: remove echo, or logprobs and max_tokens 0"
        )


class NoCacheSalt(RequestRefused):
    """A request has a salt, and the server of its model is not declared to take one."""

    param = "cache_salt"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} runs on an external server that is not declared to support "
            "cache_salt: remove cache_salt, or declare takes_cache_salt if the server "
            "supports it"
        )


class ExternalBackend:
    """The servers of all declared external models. Bound to one event loop; must be closed."""

    def __init__(
        self, models: Sequence[ExternalModel], metrics: Metrics, prefix_cache: PrefixCache = "on"
    ) -> None:
        self._metrics = metrics
        self._prefix_cache = prefix_cache
        self._servers: dict[str, Server] = {}
        for model in models:
            self._connect(model, ModelEntry.of_external(model))

    @property
    def has_models(self) -> bool:
        return bool(self._servers)

    def served(self, name: str) -> ServedElsewhere | None:
        """The external model of this name, None if none is declared."""
        server = self._servers.get(name)
        return None if server is None else ServedElsewhere(server.entry, server.model)

    def loads(self) -> list[Load]:
        """Of each model, by the name that was first asked for. Safe from any thread."""
        return [
            Load(
                each.entry.name, each.entry.kind, each.limiter.num_running, each.limiter.num_waiting
            )
            for each in [*self._servers.values()]  # a request may add one meanwhile
        ]

    async def start(
        self, request: GenerationRequest, served: ServedElsewhere, deadline_s: float | None
    ) -> Sequence[OutputStream]:
        """Admit the outputs of a request, all or none. Each must be closed.

        Raises ``RequestRefused`` or ``Overloaded``.
        """
        if request.params.num_prompt_logprobs is not None:
            raise NoPromptLogprobs
        salt = self._salt(request, served.model)
        requests = [
            openai_request(request, prompt, number, salt)
            for prompt in request.prompts
            for number in range(request.n)
        ]
        return self._admitted(requests, served, request.traffic, deadline_s)

    def _check_room(self, request: GenerationRequest, served: ServedElsewhere) -> None:
        """Raises ``RequestRefused`` or ``Overloaded``."""
        labels = labels_of(served.entry, request.traffic, served.model.backend)
        with self._counted_refusals(labels):
            limiter = self._servers[served.model.name].limiter
            limiter.check_room(len(request.prompts) * request.n)

    @contextmanager
    def _counted_refusals(self, labels: Labels) -> Iterator[None]:
        try:
            yield
        except Overloaded as refusal:
            self._metrics.rejected(labels, refusal.reason)
            raise

    def _salt(self, request: GenerationRequest, model: ExternalModel) -> str | None:
        """Raises ``NoCacheSalt``."""
        if model.takes_cache_salt:
            return request.salt_elsewhere(self._prefix_cache)
        if request.cache_salt:
            raise NoCacheSalt(model.name)
        return None

    def abort(self) -> None:
        """End all open outputs with what they have."""
        for server in self._servers.values():
            for output in server.open_outputs:
                output.abort()

    async def aclose(self) -> None:
        for server in self._servers.values():
            await server.client.aclose()

    def _connect(self, model: ExternalModel, entry: ModelEntry) -> None:
        limiter = ConcurrencyLimiter(model.max_num_seqs, model.max_waiting)
        if (known := self._servers.get(model.name)) is not None:
            entry = known.entry
        self._servers[model.name] = Server(model, entry, ExternalClient(model), limiter)

    def _admitted(
        self,
        requests: Sequence[OpenAIRequest],
        served: ServedElsewhere,
        traffic: Traffic,
        deadline_s: float | None,
    ) -> list["ExternalOutputStream"]:
        server = self._servers[served.model.name]
        labels = labels_of(served.entry, traffic, served.model.backend)
        with self._counted_refusals(labels):
            server.limiter.admit(len(requests))
        return [
            ExternalOutputStream(index, one, server, self._metrics, labels, deadline_s)
            for index, one in enumerate(requests)
        ]


class ExternalOutputStream(OutputStream):
    """One request to another server. The metrics count it once, however it ends."""

    def __init__(
        self,
        index: int,
        request: OpenAIRequest,
        server: "Server",
        metrics: Metrics,
        labels: Labels,
        deadline_s: float | None,
    ) -> None:
        super().__init__(index, num_prompt_tokens=None)
        self._request = request
        self._server = server
        self._metrics = metrics
        self._labels = labels
        metrics.admitted(labels)
        self._on_gap = metrics.token_gaps(labels)
        self.on_done: Callable[[Output], None] | None = None
        self._deadline_s = deadline_s
        self._limit: asyncio.Timeout | None = None
        self._cut = FinishReason.TIMEOUT  # the finish reason if the deadline passes
        self._arrived_s = time.monotonic()
        self._scheduled_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None
        self._num_cached_tokens: int | None = None
        self._end: tuple[FinishReason, float] | None = None  # as the server reported it, and when
        self._task: asyncio.Task[None] | None = None
        server.open_outputs.add(self)

    def start(self, notify: Callable[[], None]) -> None:
        """``failure`` is a ``BackendError``."""
        self._task = asyncio.create_task(self._follow(notify))

    async def _follow(self, notify: Callable[[], None]) -> None:
        try:
            await self._gather(notify)
        except Exception as error:  # noqa: BLE001 - raised where the output is awaited
            self.failure = error
        notify()

    async def _gather(self, notify: Callable[[], None]) -> None:
        try:
            reason = await self._ask(notify)
        except BackendOverloaded:
            self._release()
            self._metrics.rejected(self._labels, "backend_overloaded")
            raise
        except BackendRefused:
            self._release()
            raise
        except BackendError:
            self._count(FinishReason.ERROR)
            raise
        self._finish(reason, self._count(reason))
        if self.on_done is not None:
            self.on_done(self.output)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self in self._server.open_outputs:
            self._count(FinishReason.ABORT)

    def abort(self) -> None:
        """End the output now, with what it has."""
        self._cut, self._deadline_s = FinishReason.ABORT, time.monotonic()
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._deadline_s)

    async def _ask(self, notify: Callable[[], None]) -> FinishReason:
        try:
            async with asyncio.timeout_at(self._deadline_s) as self._limit:
                async with self._server.limiter.lease():
                    self._scheduled_s = time.monotonic()
                    await self._read(notify)
        except TimeoutError:
            return self._cut
        finally:
            self._limit = None
        if self._end is None or self._num_prompt_tokens is None:
            raise BackendFailed(
                f"the server of {self._server.model.name!r} ended its stream without "
                "finish_reason or usage: the server must support stream_options.include_usage"
            )
        return self._end[0]

    async def _read(self, notify: Callable[[], None]) -> None:
        async with self._server.client.stream(self._request) as chunks:
            self.has_begun = True
            notify()
            async for chunk in chunks:
                self._add(chunk)
                notify()

    def _add(self, chunk: Chunk) -> None:
        now_s = time.monotonic()
        self._prompt += chunk.prompt
        if chunk.text or chunk.tokens or chunk.calls:
            self._text.append(chunk.text)
            self._calls += chunk.calls
            self._tokens += chunk.tokens
            self._num_tokens += max(len(chunk.tokens), 1)  # until the usage has the exact number
            if self._last_token_s is None:
                self._first_token_s = now_s
            else:
                self._on_gap(now_s - self._last_token_s)
            self._last_token_s = now_s
        if chunk.finish_reason is not None:
            self._end = chunk.finish_reason, now_s
        if chunk.usage is not None:
            self._num_prompt_tokens = chunk.usage.prompt_tokens
            self._num_tokens = chunk.usage.completion_tokens
            self._num_cached_tokens = chunk.usage.cached_tokens

    def _count(self, reason: FinishReason) -> Timings:
        self._release()
        finished_s = self._end[1] if self._end else time.monotonic()
        first_token_s = self._first_token_s
        if first_token_s is None and self._num_tokens:
            first_token_s = finished_s  # an end of sequence alone, without text
        timings = Timings(
            self._arrived_s,
            self._scheduled_s,
            first_token_s,
            finished_s,
            self._num_tokens,
            num_cached_tokens=self._num_cached_tokens,
        )
        self._metrics.finished(self._labels, self._num_prompt_tokens or 0, reason, timings)
        return timings

    def _release(self) -> None:
        self._server.open_outputs.discard(self)
        self._server.limiter.release()


class ConcurrencyLimiter:
    """A limit of the requests that run on another server, and of those that wait here for it.

    It is first come, first served, and counts requests only.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_open = max_running + max_waiting
        self._free = asyncio.Semaphore(max_running)
        self._num_open = 0
        self._mean_s = 0.0
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        return self._num_open - self.num_running

    @property
    def retry_after_s(self) -> float:
        """The time that the waiting requests will take, by the mean duration of recent ones."""
        rounds = math.ceil(self.num_waiting / self._max_running)
        return min(max(rounds * self._mean_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def check_room(self, num_requests: int) -> None:
        """Raises ``RequestRefused`` for more than are ever admitted at once, or ``Overloaded``."""
        if num_requests > self._max_open:
            raise RequestRefused(
                f"too many outputs: the request has {num_requests}, but this model allows at "
                f"most {self._max_open} running and waiting requests; send fewer at once"
            )
        if self._num_open + num_requests > self._max_open:
            what = (
                f"{counted(self._num_open, 'request')} of this model running or waiting; "
                f"{num_requests} more would exceed the limit of {self._max_open}"
            )
            raise Overloaded(what, "queue_full", self.retry_after_s)

    def admit(self, num_requests: int) -> None:
        """Admit all of them or none. Each must be released. Raises as ``check_room`` does."""
        self.check_room(num_requests)
        self._num_open += num_requests

    def release(self) -> None:
        self._num_open -= 1

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[None]:
        """Wait for permission to ask the server, and hold it within the context."""
        async with self._free:
            clock = asyncio.get_running_loop().time
            began_s = clock()
            self.num_running += 1
            try:
                yield
            finally:
                self.num_running -= 1
                took_s = clock() - began_s
                self._mean_s = _FADE * (self._mean_s or took_s) + (1 - _FADE) * took_s


@dataclass(frozen=True, eq=False)
class Server:
    """A server, and the requests that are open here."""

    model: ExternalModel
    entry: ModelEntry  # by the name that was first asked for
    client: ExternalClient
    limiter: ConcurrencyLimiter
    open_outputs: set[ExternalOutputStream] = field(default_factory=set)
