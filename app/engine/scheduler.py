"""Scheduling: assigns slots, and alternates between prefill and decode and between variants.

Works on sequences and counts, without torch. The engine carries out its batches.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.engine.sequence import Sequence

if TYPE_CHECKING:
    from app.engine.variant import Variant

_TOKENS_PER_GROWTH = 64  # granularity of slots

BACKGROUND_CHUNK = 64  # prompt tokens of one background forward, which a live request waits for


class InvalidLimits(ValueError):
    """No request could run under these limits."""


@dataclass(frozen=True)
class EngineLimits:
    max_num_seqs: int = 64  # running sequences of all variants
    max_batch_tokens: int = 512  # of one prefill forward
    max_cache_tokens: int = 65_536  # of all caches with padding, at full length of every sequence
    max_model_len: int | None = None  # prompt and generated tokens; None is the limit of the model

    def __post_init__(self) -> None:
        limits = (self.max_num_seqs, self.max_batch_tokens, self.max_cache_tokens)
        if min(*limits, self.max_model_len or 1) < 1 or not self.max_slot_tokens:
            raise InvalidLimits(
                f"{self}: expected at least 1 each, and {_TOKENS_PER_GROWTH} for max_cache_tokens"
            )

    @property
    def max_slot_tokens(self) -> int:
        """The maximum length of a sequence that runs alone."""
        return self.max_cache_tokens // _TOKENS_PER_GROWTH * _TOKENS_PER_GROWTH


@dataclass(frozen=True)
class Batch:
    """One forward: for each sequence, the next ``num_scheduled_tokens`` of its uncached tokens.

    The sequences are of one variant and hold consecutive slots. Several sequences with more than
    one token each have no cached tokens.
    """

    variant: "Variant"
    sequences: tuple[Sequence, ...]
    num_scheduled_tokens: tuple[int, ...]  # of each sequence
    cache_shape: tuple[int, int]  # slots and tokens per slot that the variant's cache needs
    is_decode: bool = False  # one token for each running sequence of the variant

    @property
    def is_reproducible(self) -> bool:
        """Whether a sequence asks for it: the kernels of a batch are those of all of it."""
        return any(seq.request.params.reproducible for seq in self.sequences)

    @property
    def is_one_token_each(self) -> bool:
        return max(self.num_scheduled_tokens) == 1


def cache_shape(num_slots: int, num_tokens: int) -> tuple[int, int]:
    """The shape of a cache for this size, rounded up so that it is rarely copied."""
    steps = -(-num_tokens // _TOKENS_PER_GROWTH)
    return 1 << (num_slots - 1).bit_length(), steps * _TOKENS_PER_GROWTH


class Scheduler:
    """One queue per variant, and running sequences in the order of their slots.

    A round is one prefill, if a sequence waits, and then one decode of each variant. Prefills
    rotate over the variants: each continues its partly read prompt or admits from its queue. So
    long prompts delay a running sequence by one chunk at a time, and a short prompt does not wait
    for a long one of another variant.

    Background sequences run one at a time, and only without live ones.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.waiting: dict[Variant, deque[Sequence]] = {}
        self.running: dict[Variant, list[Sequence]] = {}  # index = slot
        self._turns: deque[Variant] = deque()  # to prefill, of all with sequences
        self._decodes_due: deque[Variant] = deque()
        self._background: deque[Sequence] = deque()  # all but the admitted one
        self._admitted_background: Sequence | None = None  # the only one in waiting and running

    @property
    def has_live(self) -> bool:
        return self._admitted_background is None and bool(self.waiting or self.running)

    @property
    def num_sequences(self) -> int:
        """Live and background ones."""
        return self.num_waiting + self.num_running + len(self._background)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(map(len, self.running.values()))

    @property
    def cache_usage(self) -> float:
        """Share of ``max_cache_tokens`` that is reserved for running sequences, 0 to 1."""
        return self._reserved() / self.limits.max_cache_tokens

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. A live one may only be added after ``preempt``."""
        if seq.request.is_background:
            self._background.append(seq)
        else:
            assert self._admitted_background is None
            self._enqueue(seq)

    def preempt(self) -> Sequence | None:
        """Free the slot of the running background sequence, which restarts later."""
        seq = self._admitted_background
        if seq is not None:
            self.remove(seq)
            seq.slot, seq.num_cached, seq.was_alone = None, 0, False
            seq.reset_scored()
            self._background.appendleft(seq)
        return seq

    def _enqueue(self, seq: Sequence) -> None:
        variant = seq.request.variant
        self.waiting.setdefault(variant, deque()).append(seq)
        if variant not in self._turns:
            self._turns.append(variant)

    def remove(self, seq: Sequence) -> int | None:
        """Remove a sequence. Returns the slot that is free afterwards, None if it had none.

        That is always the last slot of the variant: its sequence moves into the slot of ``seq``.
        """
        if seq in self._background:
            self._background.remove(seq)
            return None
        if seq is self._admitted_background:
            self._admitted_background = None
        variant = seq.request.variant
        free = None if seq.slot is None else self._leave(seq, seq.slot)
        if seq.slot is None:
            self.waiting[variant].remove(seq)
            if not self.waiting[variant]:
                del self.waiting[variant]
        if variant not in self.waiting and variant not in self.running:
            self._turns.remove(variant)
            # a removed variant must not keep its weights alive
            self._decodes_due = deque(due for due in self._decodes_due if due is not variant)
        return free

    def _leave(self, seq: Sequence, slot: int) -> int:
        slots = self.running[seq.request.variant]
        last = slots.pop()
        if last is not seq:
            slots[slot] = last
            last.slot = slot
        if not slots:
            del self.running[seq.request.variant]
        return len(slots)

    def next_batch(self) -> Batch | None:
        """The next forward, None without work. Assigns slots to waiting sequences."""
        if self._background and not self.waiting and not self.running:
            self._admitted_background = self._background.popleft()
            self._enqueue(self._admitted_background)
        while True:
            while self._decodes_due:
                variant = self._decodes_due.popleft()
                slots = self.running.get(variant, [])
                if any(seq.num_uncached == 1 for seq in slots):  # not for a partial prompt alone
                    batch = self._batch(variant, slots, [1] * len(slots))
                    return replace(batch, is_decode=True)
            prefill = self._prefill()
            self._decodes_due.extend(self.running)
            if prefill is not None or not self.running:
                return prefill

    def _prefill(self) -> Batch | None:
        """The prefill of the next variant in turn.

        A variant whose prompt finds no room keeps its turn and blocks admission, since other
        variants would otherwise take every slot that becomes free.
        """
        may_admit = True
        for variant in self._turns:
            batch = self._continue_prompt(variant)
            if batch is None and may_admit and variant in self.waiting:
                batch = self._admit(variant)
                may_admit = batch is not None
            if batch is not None:
                self._turns.remove(variant)
                self._turns.append(variant)
                return batch
        return None

    def _continue_prompt(self, variant: "Variant") -> Batch | None:
        """The next chunk of a prompt longer than a batch. A variant has at most one."""
        for seq in self.running.get(variant, ()):
            if seq.num_uncached > 1:
                return self._batch(variant, [seq], [self._chunk(seq)])
        return None

    def _admit(self, variant: "Variant") -> Batch | None:
        """The prompts from the front of the queue that fit into one batch, None if none does."""
        queue = self.waiting[variant]
        group: list[Sequence] = []
        num_scheduled_tokens: list[int] = []
        while queue and self._has_room(queue[0]):
            num_scheduled_tokens.append(self._chunk(queue[0]))
            if group and sum(num_scheduled_tokens) > self.limits.max_batch_tokens:
                num_scheduled_tokens.pop()
                break
            seq = queue.popleft()
            slots = self.running.setdefault(variant, [])
            seq.slot = len(slots)
            slots.append(seq)
            group.append(seq)
        if not queue:
            del self.waiting[variant]
        return self._batch(variant, group, num_scheduled_tokens) if group else None

    def _chunk(self, seq: Sequence) -> int:
        """The maximum of prompt tokens of the next forward."""
        longest = self.limits.max_batch_tokens
        if seq.request.is_background:
            longest = min(longest, BACKGROUND_CHUNK)
        return min(seq.num_uncached, longest)

    def _has_room(self, seq: Sequence) -> bool:
        if self.num_running >= self.limits.max_num_seqs:
            return False
        return self._reserved(seq) <= self.limits.max_cache_tokens

    def _reserved(self, newcomer: Sequence | None = None) -> int:
        """Tokens of all caches at full length of the running sequences and the newcomer."""
        queues = {variant: [*seqs] for variant, seqs in self.running.items()}
        if newcomer is not None:
            queues.setdefault(newcomer.request.variant, []).append(newcomer)
        total = 0
        for seqs in queues.values():
            num_slots, num_tokens = cache_shape(len(seqs), max(seq.max_len for seq in seqs))
            total += num_slots * num_tokens
        return total

    def _batch(
        self, variant: "Variant", seqs: list[Sequence], num_scheduled_tokens: list[int]
    ) -> Batch:
        slots = self.running[variant]
        longest = max(seq.num_cached for seq in slots)
        newest = max(
            seq.num_cached + num for seq, num in zip(seqs, num_scheduled_tokens, strict=True)
        )
        shape = cache_shape(len(slots), max(longest, newest))
        return Batch(variant, tuple(seqs), tuple(num_scheduled_tokens), shape)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if a slot is lost, shared or beyond the limits."""
        assert self.num_running <= self.limits.max_num_seqs
        assert self._reserved() <= self.limits.max_cache_tokens
        if (seq := self._admitted_background) is not None:
            active = [*self.waiting.values(), *self.running.values()]
            assert [[*seqs] for seqs in active] == [[seq]], "a background sequence is not alone"
        assert all(seq.slot is None and seq.num_cached == 0 for seq in self._background)
        assert sorted(map(id, self._turns)) == sorted(map(id, {**self.waiting, **self.running}))
        for variant, slots in self.running.items():
            assert slots, variant.name
            assert [seq.slot for seq in slots] == list(range(len(slots))), variant.name
            assert all(seq.num_uncached > 0 for seq in slots), variant.name
            assert sum(seq.num_uncached > 1 for seq in slots) <= 1, variant.name
        for variant, queue in self.waiting.items():
            assert queue, variant.name
            assert all(seq.slot is None and seq.num_cached == 0 for seq in queue), variant.name
