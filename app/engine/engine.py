"""The engine: requests in, token events out, one forward per step.

Synchronous, on token ids: text, threads and streams are the shell's affair.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from app.engine.runner import Runner
from app.engine.sampling import new_generator, next_tokens
from app.engine.scheduler import Batch, EngineLimits, Scheduler
from app.engine.sequence import FinishReason, Request, Sequence, TokenEvent
from app.engine.variants import Variant

logger = logging.getLogger(__name__)


class RequestRefused(ValueError):
    """The engine will not take this request."""


class EmptyPrompt(RequestRefused):
    """A prompt without tokens leaves the model nothing to continue."""


class PromptTooLong(RequestRefused):
    """Prompt and answer together do not fit."""


class UnknownTokenId(RequestRefused):
    """A token id is outside of the model's vocabulary."""


class DuplicateRequest(RequestRefused):
    """A request of this id is in the engine already."""


@dataclass(frozen=True)
class VariantStats:
    num_running: int
    num_waiting: int


@dataclass(frozen=True)
class EngineStats:
    num_running: int
    num_waiting: int
    kv_cache_usage: float  # 0 to 1: share of the cache tokens reserved by running sequences
    batch_size: int  # sequences in the latest decode forward
    variants: Mapping[str, VariantStats]  # by name; those with anything to do


class Engine:
    """Continuous batching of any number of variants. Not thread-safe: one thread drives it."""

    def __init__(self, limits: EngineLimits | None = None) -> None:
        self.limits = limits or EngineLimits()
        self._scheduler = Scheduler(self.limits)
        self._sequences: dict[str, Sequence] = {}
        self._runners: dict[Variant, Runner] = {}  # of the variants with running sequences
        self._batch_size = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def check(self, request: Request) -> None:
        """Raise ``RequestRefused`` if the request could never run; safe from any thread."""
        variant, num_prompt = request.variant, len(request.prompt_ids)
        if not num_prompt:
            raise EmptyPrompt("the prompt is empty: expected at least one token")
        longest = self.max_len(variant)
        if num_prompt + request.params.max_new_tokens > longest:
            raise PromptTooLong(
                f"a prompt of {num_prompt} tokens and max_new_tokens="
                f"{request.params.max_new_tokens} do not fit into the {longest} tokens of "
                f"{variant.name}: shorten the prompt or ask for fewer tokens"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < variant.vocab_size:
            raise UnknownTokenId(
                f"the prompt has token ids {min(request.prompt_ids)} to {max(request.prompt_ids)}: "
                f"expected 0 to {variant.vocab_size - 1}"
            )

    def max_len(self, variant: Variant) -> int:
        """Tokens of prompt and answer that a request for this variant may have."""
        limits = (variant.max_model_len, self.limits.max_slot_tokens)
        return min(*limits, self.limits.max_model_len or variant.max_model_len)

    def add(self, request: Request) -> None:
        """Put a request in line. Raises ``RequestRefused``, and then nothing has changed."""
        self.check(request)
        if request.request_id in self._sequences:
            raise DuplicateRequest(f"request {request.request_id} is running already")
        seq = Sequence(request, new_generator(request.params))
        self._sequences[request.request_id] = seq
        self._scheduler.add(seq)

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request now, with ABORT; its slot is free at once. None if there is no such one."""
        seq = self._sequences.get(request_id)
        return None if seq is None else self._finish(seq, FinishReason.ABORT)

    def step(self) -> list[TokenEvent]:
        """One forward and the tokens it brought. A failure ends the sequences of its batch only."""
        batch = self._scheduler.next_batch()
        if batch is None:
            return []
        try:
            token_ids = self._run(batch)
        except Exception:
            ids = [seq.request.request_id for seq in batch.sequences]
            logger.exception("a forward of %s failed, and with it %s", batch.variant.name, ids)
            # From the last slot on, so that none of them has to move into another's.
            return [self._finish(seq, FinishReason.ERROR) for seq in reversed(batch.sequences)]
        return [self._advance(seq, token_id) for seq, token_id in token_ids]

    def stats(self) -> EngineStats:
        waiting, running = self._scheduler.waiting, self._scheduler.running
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_cache_usage=self._scheduler.cache_usage,
            batch_size=self._batch_size if running else 0,
            variants={
                variant.name: VariantStats(
                    num_running=len(running.get(variant, ())),
                    num_waiting=len(waiting.get(variant, ())),
                )
                for variant in {**running, **waiting}
            },
        )

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if slots, caches and sequences disagree. Reads every cache."""
        self._scheduler.check_integrity()
        running = self._scheduler.running
        assert self._runners.keys() == running.keys(), "a cache outlived its sequences"
        assert len(self._sequences) == self._scheduler.num_running + self._scheduler.num_waiting
        for variant, runner in self._runners.items():
            longest = max(seq.num_cached for seq in running[variant])
            runner.cache.check_integrity(len(running[variant]), longest)

    def _run(self, batch: Batch) -> list[tuple[Sequence, int | None]]:
        """The next token of every sequence whose tokens are all cached now."""
        now_s = time.monotonic()
        for seq in batch.sequences:
            seq.scheduled_s = seq.scheduled_s or now_s
        if batch.variant not in self._runners:
            self._runners[batch.variant] = Runner(batch.variant)
        logits = self._runners[batch.variant].forward(batch)
        for seq in batch.sequences:
            seq.num_cached += min(batch.width, seq.num_uncached)
        ready = [row for row, seq in enumerate(batch.sequences) if not seq.num_uncached]
        seqs = [batch.sequences[row] for row in ready]
        self._batch_size = len(batch.sequences)
        token_ids = next_tokens(
            logits[ready], [seq.request.params for seq in seqs], [seq.generator for seq in seqs]
        )
        return list(zip(seqs, token_ids, strict=True))

    def _advance(self, seq: Sequence, token_id: int | None) -> TokenEvent:
        if token_id is None:
            logger.error("request %s: its logits are not finite", seq.request.request_id)
            return self._finish(seq, FinishReason.ERROR)
        seq.tokens.append(token_id)
        seq.first_token_s = seq.first_token_s or time.monotonic()
        if reason := seq.finish_reason():
            return self._finish(seq, reason, token_id)
        return TokenEvent(seq.request.request_id, token_id)

    def _finish(
        self, seq: Sequence, reason: FinishReason, token_id: int | None = None
    ) -> TokenEvent:
        del self._sequences[seq.request.request_id]
        self._release(seq)
        timings = seq.timings(time.monotonic())
        return TokenEvent(seq.request.request_id, token_id, reason, timings)

    def _release(self, seq: Sequence) -> None:
        variant, slot = seq.request.variant, seq.slot
        last = self._scheduler.remove(seq)
        if variant not in self._scheduler.running:
            self._runners.pop(variant, None)  # idle: its cache goes
        elif slot is not None and last is not None:
            self._runners[variant].cache.free(slot, last)
