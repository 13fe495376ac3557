"""Generation requests in, outputs out, by the engine or by another server.

Independent of HTTP: each failure has an exception of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from app.engine.scheduling.sequence import RequestRefused, SamplingParams
from app.generation.engine_backend import ENGINE_RAISES, EngineBackend
from app.generation.openai_backend import ExternalBackend
from app.generation.openai_client import EXTERNAL_RAISES
from app.generation.output import Delta, Output, OutputStream
from app.generation.request import GenerationRequest, Prompt, Served, ServedElsewhere
from app.generation.tokenization import TokenIds
from app.generation.vllm_backend import VllmBackend
from app.metrics.metrics import Metrics
from app.models.catalog import UnknownModel
from app.models.entry import ModelEntry
from app.models.registry import LOAD_RAISES, ModelRegistry, ServedModel
from app.vllm.options import VllmOptions
from app.vllm.server import VllmUnavailable

# what Generator.load may raise
GENERATOR_LOAD_RAISES = (*LOAD_RAISES, VllmUnavailable)
RAISES = (*GENERATOR_LOAD_RAISES, *ENGINE_RAISES, *EXTERNAL_RAISES)


@dataclass(frozen=True)
class Host:
    """What serves a model, as it is known before the model is loaded."""

    tokenizer: PreTrainedTokenizerBase | None = None  # None while it is not known
    vllm: VllmOptions | None = None  # set if this service runs vLLM for it
    is_external: bool = False


Check = Callable[[Host], None]


@dataclass(frozen=True, eq=False)
class Generator:
    """Generates with the variants of the registry and the models of other servers."""

    registry: ModelRegistry
    engine: EngineBackend
    external: ExternalBackend
    metrics: Metrics
    vllm: VllmBackend | None = None
    max_timeout_s: float | None = None

    async def aclose(self) -> None:
        """End the processes and connections of the backends."""
        await self.engine.aclose()
        await self.external.aclose()
        if self.vllm is not None:
            await self.vllm.aclose()

    def abort(self) -> None:
        """End all open outputs of other servers with what they have."""
        self.external.abort()
        if self.vllm is not None:
            self.vllm.abort()

    def check_room(self) -> None:
        """Raise ``Overloaded`` if no request would be admitted now, whatever its model is."""
        if not self._may_go_elsewhere:
            self.engine.check_room()

    def reserved(self) -> AbstractContextManager[None]:
        """Hold a place while a request is parsed. Raises as ``check_room`` does."""
        return nullcontext() if self._may_go_elsewhere else self.engine.reserved()

    @property
    def _may_go_elsewhere(self) -> bool:
        is_vllm_chosen = self.vllm is not None and self.vllm.servers.is_chosen
        return self.external.has_models or is_vllm_chosen

    async def entry(self, name: str) -> ModelEntry:
        """The entry of this name, without loading it. Raises as ``Catalog.resolve`` does."""
        with self._counted_refusals():
            return await asyncio.to_thread(self.registry.catalog.resolve, name)

    @contextmanager
    def _counted_refusals(self) -> Iterator[None]:
        try:
            yield
        except UnknownModel:
            self.metrics.rejected_unparsed("unknown_model")
            raise

    async def load(self, name: str, check: Check | None = None) -> Served:
        """The model of this name. Weights that are not loaded yet are read by another thread.

        Raises the errors in ``GENERATOR_LOAD_RAISES``, and what ``check`` raises before it is
        loaded, if its files are here.
        """
        external = self.registry.catalog.external_name(name)
        if external and (served := self.external.served(external)) is not None:
            if check is not None:
                check(Host(is_external=True))
            return served
        entry = await self.entry(name)
        if self.vllm is not None and self.vllm.servers.serves(entry):
            if check is not None:
                check(Host(await self._known_tokenizer(entry), self.vllm.servers.options))
            return await self.vllm.load(entry)
        if check is not None and entry.error is None:
            check(Host(await self._known_tokenizer(entry)))
        loading = await asyncio.to_thread(self.registry.begin, entry)
        loaded = await asyncio.wrap_future(loading)
        if check is not None:  # of a checkpoint without its dense model, only now
            check(Host(loaded.tokenizer))
        await self.engine.prepare(loaded)
        return loaded

    async def _known_tokenizer(self, entry: ModelEntry) -> PreTrainedTokenizerBase | None:
        """That of a model which runs, or that of its files. None if neither is here."""
        ready = None if self.vllm is None else self.vllm.servers.ready_model(entry)
        if ready is not None:
            return ready.tokenizer
        return await asyncio.to_thread(self.registry.tokenizer, entry)

    async def tokenizer(self, name: str) -> tuple[ModelEntry, PreTrainedTokenizerBase]:
        """The entry of this name and its tokenizer, without the weights if its files are here.

        Raises as ``load`` does, and ``RequestRefused`` for a model of another server.
        """
        entry, known = await self.entry(name), None
        if entry.error is None or entry.is_foreign:
            known = await self._known_tokenizer(entry)
        if known is None and entry.external is None:
            known = (await self.load(name)).tokenizer
        if known is None:
            raise RequestRefused(
                f"{name!r} runs on another server, whose tokenizer is not known here: ask that one"
            )
        return entry, known

    async def encode(
        self,
        prompts: Sequence[Prompt],
        served: Sequence[Served],
        max_new_tokens: int,
    ) -> list[TokenIds]:
        """Token ids of each prompt, for all of these variants of one model.

        They all run in the engine, or all in vLLM. Raises ``PromptTooLong``, ``Overloaded``, and
        the errors of ``render_chat``.
        """
        elsewhere = [one.vllm for one in served if isinstance(one, ServedElsewhere) and one.vllm]
        if elsewhere and self.vllm is not None:
            return await self.vllm.encode(prompts, elsewhere, max_new_tokens)
        here = [one for one in served if isinstance(one, ServedModel)]
        return await self.engine.encode(prompts, here, max_new_tokens)

    @property
    def max_vllm_servers(self) -> int:
        """The number of models that vLLM can serve at the same time."""
        return 0 if self.vllm is None else self.vllm.servers.options.max_servers

    def fingerprint(self, served: Served, params: SamplingParams) -> str | None:
        """OpenAI's ``system_fingerprint``; None for a model of another server."""
        if isinstance(served, ServedElsewhere):
            if self.vllm is None or served.vllm is None:
                return None
            return self.vllm.fingerprint(served.vllm)
        return self.engine.fingerprint(served, params)

    async def generate(self, request: GenerationRequest) -> list[Output]:
        """The outputs of the request, in order. Raises what ``open`` and ``finish`` do."""
        async with self.open(request) as generation:
            return await generation.finish()

    @asynccontextmanager
    async def open(self, request: GenerationRequest) -> AsyncIterator["Generation"]:
        """The outputs as they grow; leaving the context cancels those that still run.

        Raises ``RequestRefused``, ``Overloaded``, ``EngineStopped`` or a ``BackendError`` before
        anything runs, and for several outputs of another server before the first text is there.
        """
        served = request.served
        limits_s = [limit for limit in (request.timeout_s, self.max_timeout_s) if limit is not None]
        deadline_s = time.monotonic() + min(limits_s) if limits_s else None
        if isinstance(served, ServedElsewhere):
            backend = self.external if served.vllm is None else self.vllm
            assert backend is not None
            outputs = await backend.start(request, served, deadline_s)
        else:
            outputs = await self.engine.start(request, served, deadline_s)
        async with aclosing(Generation(outputs)) as generation:
            await generation.begin()
            yield generation


class Generation:
    """The outputs of one request, generated side by side and read at any pace."""

    def __init__(self, outputs: Sequence[OutputStream]) -> None:
        self._outputs = outputs
        self._changed = asyncio.Event()
        self._is_woken = False
        for output in outputs:
            output.start(self._changed.set)

    @property
    def is_over(self) -> bool:
        """Whether ``next_deltas`` has told the end of every output."""
        return all(output.is_exhausted for output in self._outputs)

    @property
    def outputs(self) -> list[Output]:
        """The finished outputs, once ``is_over``."""
        return [output.output for output in self._outputs]

    async def begin(self) -> None:
        """Wait until no output can be refused any more, or one has a delta.

        Raises the failure of an output.
        """
        while not (
            all(output.has_begun for output in self._outputs)
            or any(output.has_delta for output in self._outputs)
        ):
            await self._wait()
        self._changed.set()  # deltas that arrived meanwhile are still to be returned

    def wake(self) -> None:
        """Have ``next_deltas`` return at once, with an empty list if there are none."""
        self._is_woken = True
        self._changed.set()

    async def next_deltas(self) -> list[Delta]:
        """Wait for the next deltas: at most one per output. Cancelling the wait loses nothing.

        Raises ``GenerationFailed``, ``EngineStopped`` or a ``BackendError`` if one of the outputs
        cannot be finished.
        """
        deltas: list[Delta] = []
        while not (deltas or self._is_woken or self.is_over):
            await self._wait()
            deltas = [delta for output in self._outputs if (delta := output.take_delta())]
        self._is_woken = False
        return deltas

    async def finish(self) -> list[Output]:
        """Wait for every output, in order, without its deltas. Raises as ``next_deltas`` does."""
        while not all(output.is_finished for output in self._outputs):
            await self._wait()
        return self.outputs

    async def aclose(self) -> None:
        """Cancel what still runs."""
        for output in self._outputs:
            await output.aclose()

    async def _wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()
        for output in self._outputs:
            if output.failure is not None:
                raise output.failure
