"""The engine: takes requests, and returns token events, one forward per step.

It is synchronous and works on token ids. Text, threads and streams are built around it.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from weakref import WeakKeyDictionary

import torch

from app.engine.autotuning import OFF, Autotuner
from app.engine.cache.block_table import BlockTable
from app.engine.cache.caches import Caches
from app.engine.cache.paged_cache import PagedCache
from app.engine.launching import Launched, Launcher, landed
from app.engine.running.cuda_graphs import Recorder, recorder_on
from app.engine.running.prepared_kernels import Kernels
from app.engine.sampling.sampling import Choice, new_generator
from app.engine.scheduling.scheduler import Batch, CacheCounts, EngineLimits, Scheduler
from app.engine.scheduling.sequence import (
    FinishReason,
    InvalidSampling,
    PromptToken,
    Request,
    RequestRefused,
    Sequence,
    Timings,
    TokenEvent,
)
from app.engine.step import NEVER, Interruption, Step
from app.engine.variant import Variant
from pruning.models.blocks import num_blocks
from pruning.plural import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VariantStats:
    num_running: int
    num_waiting: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class EngineStats:
    num_running: int
    num_waiting: int
    kv_cache_usage: float  # 0 to 1: share of all pages that running sequences have
    batch_size: int  # sequences in the latest decode forward
    variants: Mapping[str, VariantStats]  # by name, of all with requests
    cache_counts: Mapping[str, CacheCounts]  # by name, since the start
    num_rebuilds: int = 0  # of caches whose account of pages was broken, since the start


class PromptTooLong(RequestRefused):
    """The prompt and ``max_new_tokens`` exceed the maximum length."""


class NotYetReproducible(RuntimeError):
    """The kernels of reproducible steps are still compiled."""

    retry_after_s = 10.0

    def __init__(self, name: str) -> None:
        super().__init__(
            f"kernels for reproducible outputs of {name} are still being compiled: retry later"
        )


@dataclass(frozen=True)
class PromptLimit:
    """The tokens that a prompt and its output may have together."""

    variant_name: str
    max_len: int
    max_new_tokens: int

    def check(self, num_prompt: int, *, is_minimum: bool = False) -> None:
        """Raise ``PromptTooLong`` for a prompt of that many tokens, or of at least that many."""
        if num_prompt + self.max_new_tokens > self.max_len:
            raise PromptTooLong(
                "the prompt has "
                f"{'at least ' if is_minimum else ''}{counted(num_prompt, 'token')}, which "
                f"together with max_new_tokens={self.max_new_tokens} exceeds the context length "
                f"of {self.variant_name}, {self.max_len} tokens: shorten the prompt or reduce "
                "max_new_tokens"
            )


class Engine:
    """Continuous batching of any number of variants. Not thread-safe: one thread drives it.

    Background requests run while there are no live ones and are preempted by them. ``stats`` does
    not count them.
    """

    def __init__(
        self,
        limits: EngineLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        recorder: Callable[[torch.device], Recorder | None] = recorder_on,
        tuner: Autotuner = OFF,
        is_reproducible: bool = False,
    ) -> None:
        self.limits = limits or EngineLimits()
        self._clock = clock
        self.kernels = Kernels(tuner, self.limits, recorder)
        self.is_reproducible = is_reproducible  # of all requests
        self._scheduler = Scheduler(self.limits)
        self._sequences: dict[str, Sequence] = {}
        self._caches = Caches(
            self.limits.kv_cache_bytes, self.limits.max_batch_tokens, self.limits.max_num_seqs
        )
        self._roots: WeakKeyDictionary[Variant, bytes] = WeakKeyDictionary()  # of keys of pages
        self._launcher = Launcher(self._scheduler, self._caches, self.kernels)
        self._ahead: Launched | None = None  # launched before the tokens in front of it were read
        self._batch_size = 0
        self._num_rebuilds = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def has_live_work(self) -> bool:
        return self._scheduler.has_live

    def check(self, request: Request) -> None:
        """Raise ``RequestRefused`` or ``InvalidSampling`` for a request that could never run, and
        ``NotYetReproducible``.

        Safe from any thread."""
        variant, num_prompt = request.variant, len(request.prompt_ids)
        if not num_prompt:
            raise RequestRefused("the prompt is empty: expected at least one token")
        limit = PromptLimit(variant.name, self.max_len(variant), request.params.max_new_tokens)
        limit.check(num_prompt)
        biased = max((token_id for token_id, _ in request.params.logit_bias), default=0)
        if biased >= variant.vocab_size:
            expected = f"token ids from 0 to {variant.vocab_size - 1}"
            raise InvalidSampling("logit_bias", biased, expected)
        if request.params.response_format is not None and request.params.ignore_eos:
            expected = "false with a response_format, which determines where it ends"
            raise InvalidSampling("ignore_eos", True, expected)
        if self._is_reproducible(request) and self.kernels.are_awaited(variant):
            raise NotYetReproducible(variant.name)
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < variant.vocab_size:
            raise RequestRefused(
                f"the prompt has token ids from {min(request.prompt_ids)} to "
                f"{max(request.prompt_ids)}: expected 0 to {variant.vocab_size - 1}"
            )

    def prepare(self, variant: Variant) -> None:
        """Make what steps of this variant need, with its cache. Safe from any thread.

        A thread that computes keeps threads of OpenMP, beside which those of the steps wait for
        each other asleep. So it should be one that ends, and not that of an event loop.
        Raises ``CacheTooSmall``, ``CacheTooLarge`` or ``CannotCompute``.
        """
        self.kernels.prepare(variant)
        self._caches.of(variant)

    def max_len(self, variant: Variant) -> int:
        """The maximum of prompt and generated tokens of a request for this variant."""
        return self._launcher.max_len(variant)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ``RequestRefused`` without any change."""
        self.check(request)
        assert (request.grammar is None) == (request.params.response_format is None)
        if request.request_id in self._sequences:
            raise RequestRefused(f"request {request.request_id} is running already")
        matcher = None if request.grammar is None else request.grammar.matcher()
        is_cut_alone = self._is_reproducible(request) and (
            self._launcher.runner(request.variant).depends_on_its_batch
        )
        table = self._table(request, can_find=not is_cut_alone)
        seq = Sequence(request, new_generator(request.params), matcher, table, is_cut_alone)
        self._sequences[request.request_id] = seq
        if not request.is_background:
            self.preempt()
        self._scheduler.add(seq)
        live = [each for each in self._sequences.values() if not each.request.is_background]
        if not request.is_background and len(live) > 1:
            for other in live:
                other.was_alone = False

    def preempt(self) -> None:
        """Free the pages of the running background request, which restarts later."""
        self._scheduler.preempt()

    def cancel(
        self, request_id: str, reason: FinishReason = FinishReason.ABORT
    ) -> TokenEvent | None:
        """End a request and free its pages. None if there is no such request."""
        seq = self._sequences.get(request_id)
        return None if seq is None else self._finish(seq, reason)

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        """Run one forward. Returns its tokens, and the ends of requests past their deadline.

        A failure ends only the sequences of its batch. A failure of the device raises
        ``torch.AcceleratorError``, since no later forward can succeed. Raises ``StepInterrupted``.
        """
        events = self._expire() + self._mended()
        launched, self._ahead = self._ahead, None
        batch = self._scheduler.next_batch() if launched is None else launched.batch
        if batch is None or self._broken_caches():
            return events  # the next step rebuilds a broken one
        try:
            launched = launched or self._run(batch, interruption)
            self._ahead = self._launcher.ahead_of(launched)
            self._batch_size = len(batch.sequences)
            choices = landed(launched, self._is_open)
        except torch.AcceleratorError:
            raise
        except Exception:
            self._ahead = None
            seqs = [seq for seq in batch.sequences if self._is_open(seq)]
            ids = [seq.request.request_id for seq in seqs]
            logger.exception("a forward of %s failed, which ends %s", batch.variant.name, ids)
            return events + [self._finish(seq, FinishReason.ERROR) for seq in seqs]
        return events + [self._advanced(seq, choice) for seq, choice in choices]

    def _is_open(self, seq: Sequence) -> bool:
        return self._sequences.get(seq.request.request_id) is seq

    def stats(self) -> EngineStats:
        waiting, running = self._scheduler.waiting, self._scheduler.running
        if not self.has_live_work:
            waiting, running = {}, {}
        return EngineStats(
            num_running=sum(map(len, running.values())),
            num_waiting=sum(map(len, waiting.values())),
            kv_cache_usage=self._usage() if running else 0.0,
            batch_size=self._batch_size if running else 0,
            variants={
                variant.name: VariantStats(
                    num_running=len(running.get(variant, ())),
                    num_waiting=len(waiting.get(variant, ())),
                    kv_cache_bytes=self._cache_bytes(variant, running.get(variant, ())),
                )
                for variant in {**running, **waiting}
            },
            cache_counts={name: replace(counts) for name, counts in self._scheduler.counts.items()},
            num_rebuilds=self._num_rebuilds,
        )

    def _cache_bytes(self, variant: Variant, running: Iterable[Sequence]) -> int:
        """The bytes of the pages of these sequences."""
        unit_bytes = self._caches.of(variant).shape.num_bytes
        units = {unit for seq in running for page in seq.pages.pages for unit in page.units}
        return len(units) * unit_bytes

    def _usage(self) -> float:
        caches = self._caches.every()
        used = sum(cache.pool.num_used * cache.shape.num_bytes for cache in caches)
        return used / max(1, sum(cache.num_bytes for cache in caches))

    def mend_idle(self) -> bool:
        """Rebuild caches that have pages in use although there is no request. Returns whether there
        were any."""
        every = self._caches.every()
        lost = [cache for cache in every if cache.pool.num_used or cache.pool.is_broken]
        for cache in lost:
            self._rebuild(cache)
        return bool(lost)

    def _broken_caches(self) -> list[PagedCache]:
        return [cache for cache in self._caches.every() if cache.pool.is_broken]

    def _mended(self) -> list[TokenEvent]:
        """Rebuild broken caches. Requests whose pages were wrong end, and others read their tokens
        again."""
        events = []
        for cache in self._broken_caches():
            self._ahead = None
            self._scheduler.leave_pages(cache.pool)
            wrong = [seq for seq in self._sequences.values() if seq.pages.is_broken]
            events += [self._finish(seq, FinishReason.ERROR) for seq in wrong]
            self._rebuild(cache)
        return events

    def _rebuild(self, cache: PagedCache) -> None:
        cache.rebuild()
        self._num_rebuilds += 1
        logger.error("the account of pages was wrong: the cache of keys and values was rebuilt")

    def take_ahead(self) -> bool:
        """Take a part of the memory that new pages will need next. False: enough is taken."""
        return any(cache.take_ahead() for cache in self._caches.every())

    def _expire(self) -> list[TokenEvent]:
        now_s = self._clock()
        deadlines_s = ((seq, seq.request.deadline_s) for seq in self._sequences.values())
        late = [
            seq for seq, deadline_s in deadlines_s if deadline_s is not None and deadline_s <= now_s
        ]
        return [self._finish(seq, FinishReason.TIMEOUT) for seq in late]

    def _run(self, batch: Batch, interruption: Interruption) -> Launched:
        now_s = self._clock()
        for seq in batch.sequences:
            if seq.scheduled_s is None:
                seq.scheduled_s = now_s
        is_reproducible = self.is_reproducible or batch.is_reproducible
        return self._launcher.launch(batch, Step(interruption, is_reproducible=is_reproducible))

    def _is_reproducible(self, request: Request) -> bool:
        return self.is_reproducible or request.params.reproducible

    def _table(self, request: Request, *, can_find: bool) -> BlockTable:
        """An empty table of pages, which are found by what their keys and values depend on."""
        variant, params = request.variant, request.params
        pool, depth = self._caches.of(variant).pool, num_blocks(variant.model)
        if request.cache_scope is None or request.is_background:
            return BlockTable(pool, depth)
        weights = self._roots.setdefault(variant, secrets.token_bytes(16))
        scope = f"{self._is_reproducible(request)} {request.cache_scope}".encode()
        root = blake2b(scope, digest_size=16, key=weights).digest()
        return BlockTable(
            pool, depth, root, can_find=can_find and params.num_prompt_logprobs is None
        )

    def _advanced(self, seq: Sequence, choice: Choice | None) -> TokenEvent:
        """What fails in the work of one sequence ends it alone."""
        num_tokens = len(seq.tokens)
        try:
            return self._advance(seq, choice)
        except Exception:
            logger.exception("request %s failed", seq.request.request_id)
            del seq.tokens[num_tokens:]
            return self._fail(seq)

    def _advance(self, seq: Sequence, choice: Choice | None) -> TokenEvent:
        if choice is None:
            return self._fail(seq)
        if not seq.request.params.max_new_tokens:  # only the prompt was to be read
            return self._finish(seq, FinishReason.LENGTH, seq.take_scored())
        seq.append(choice.token_id)
        if seq.first_token_s is None:
            seq.first_token_s = self._clock()
        reason = seq.finish_reason()
        timings = None if reason is None else self._end(seq)
        if timings is not None and seq.pages.is_broken:
            del seq.tokens[-1]
            timings = seq.timings(self._clock())
            return TokenEvent(seq.request.request_id, None, FinishReason.ERROR, timings)
        return TokenEvent(
            seq.request.request_id,
            choice.token_id,
            reason,
            timings,
            choice.logprob,
            choice.top_logprobs,
            seq.take_scored(),
        )

    def _fail(self, seq: Sequence) -> TokenEvent:
        """End a sequence that has no next token."""
        failure = None if seq.matcher is None else seq.matcher.failure
        reason = failure or "no token can be chosen from its logits"
        logger.error("request %s: %s", seq.request.request_id, reason)
        return replace(self._finish(seq, FinishReason.ERROR), failure=failure)

    def _finish(
        self, seq: Sequence, reason: FinishReason, prompt: tuple[PromptToken, ...] = ()
    ) -> TokenEvent:
        """End a sequence without a further token."""
        if reason is FinishReason.ERROR:  # its numbers may not be finite
            self._caches.of(seq.request.variant).clear(seq.pages.forget())
        timings = self._end(seq)
        if seq.pages.is_broken:
            reason, prompt = FinishReason.ERROR, ()
        return TokenEvent(seq.request.request_id, None, reason, timings, prompt=prompt)

    def _end(self, seq: Sequence) -> Timings:
        del self._sequences[seq.request.request_id]
        self._scheduler.remove(seq)
        if not self._sequences:
            self._ahead = None  # which would keep its variant
        return seq.timings(self._clock())
