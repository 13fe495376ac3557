"""Who runs next: admission to slots, and turns between prefill and decode and between variants.

Knows sequences and counts. It imports no torch and touches no cache; the engine does what it says.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.engine.sequence import Sequence

if TYPE_CHECKING:
    from app.engine.variants import Variant

_TOKENS_PER_GROWTH = 64  # slots grow longer in these steps


class InvalidLimits(ValueError):
    """Limits under which nothing could ever run."""


@dataclass(frozen=True)
class EngineLimits:
    max_num_seqs: int = 64  # sequences that hold a slot, of all variants together
    max_batch_tokens: int = 512  # of one prefill forward, padding included
    max_cache_tokens: int = 65_536  # of all caches, padding included, once every answer is full
    max_model_len: int | None = None  # tokens of prompt and answer; None leaves it to the model

    def __post_init__(self) -> None:
        limits = (self.max_num_seqs, self.max_batch_tokens, self.max_cache_tokens)
        if min(*limits, self.max_model_len or 1) < 1 or not self.max_slot_tokens:
            raise InvalidLimits(
                f"{self}: expected at least 1 each, and {_TOKENS_PER_GROWTH} for max_cache_tokens"
            )

    @property
    def max_slot_tokens(self) -> int:
        """The longest that one sequence may get when it has all caches to itself."""
        return self.max_cache_tokens // _TOKENS_PER_GROWTH * _TOKENS_PER_GROWTH


@dataclass(frozen=True)
class Batch:
    """One forward: each sequence is fed up to ``width`` of the tokens it has not cached yet.

    The sequences are of one variant and hold neighbouring slots, in order.
    """

    variant: "Variant"
    sequences: tuple[Sequence, ...]
    width: int
    cache_shape: tuple[int, int]  # slots, and tokens per slot, that the variant's cache needs


def cache_shape(num_slots: int, num_tokens: int) -> tuple[int, int]:
    """What a cache allocates for this many: rounded up, so that it seldom has to be copied."""
    steps = -(-num_tokens // _TOKENS_PER_GROWTH)
    return 1 << (num_slots - 1).bit_length(), steps * _TOKENS_PER_GROWTH


class Scheduler:
    """Prompts wait in one line per variant; running sequences are kept in the order of their slots.

    A round is one prefill, if anything waits, and then one decode of each variant. So a long
    prompt holds up the running ones for one chunk at a time, and no variant waits for another's
    sequences to end.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.waiting: dict[Variant, deque[Sequence]] = {}  # the first variant has the turn
        self.running: dict[Variant, list[Sequence]] = {}  # index = slot
        self._decodes_due: deque[Variant] = deque()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(map(len, self.running.values()))

    @property
    def cache_usage(self) -> float:
        """Share of ``max_cache_tokens`` that the running sequences may come to need, 0 to 1."""
        return self._reserved() / self.limits.max_cache_tokens

    def add(self, seq: Sequence) -> None:
        self.waiting.setdefault(seq.request.variant, deque()).append(seq)

    def remove(self, seq: Sequence) -> int | None:
        """Forget a sequence; returns the slot that is free now, None if it held none.

        That is always the last slot of the variant: its tenant takes over the slot of ``seq``.
        """
        variant = seq.request.variant
        if seq.slot is None:
            self.waiting[variant].remove(seq)
            if not self.waiting[variant]:
                del self.waiting[variant]
            return None
        slots = self.running[variant]
        last = slots.pop()
        if last is not seq:
            slots[seq.slot] = last
            last.slot = seq.slot
        if not slots:
            del self.running[variant]
        return len(slots)

    def next_batch(self) -> Batch | None:
        """The next forward, None if there is nothing to do; admits waiting sequences to slots."""
        if not self._decodes_due:
            self._decodes_due.extend(self.running)
            if prefill := self._continue_prompt() or self._admit():
                return prefill
        while self._decodes_due:
            variant = self._decodes_due.popleft()
            if variant in self.running:
                return self._batch(variant, self.running[variant], 1)
        return None

    def _continue_prompt(self) -> Batch | None:
        """The next chunk of a prompt that was longer than a batch; there is at most one."""
        for variant, seqs in self.running.items():
            for seq in seqs:
                if seq.num_uncached > 1:
                    width = min(seq.num_uncached, self.limits.max_batch_tokens)
                    return self._batch(variant, [seq], width)
        return None

    def _admit(self) -> Batch | None:
        """Prompts from the line whose turn it is. One that finds no room keeps the turn."""
        if not self.waiting:
            return None
        variant, line = next(iter(self.waiting.items()))
        group: list[Sequence] = []
        width = 0
        while line and self._has_room(line[0]):
            wider = max(width, min(line[0].num_uncached, self.limits.max_batch_tokens))
            if group and wider * (len(group) + 1) > self.limits.max_batch_tokens:
                break
            seq, width = line.popleft(), wider
            slots = self.running.setdefault(variant, [])
            seq.slot = len(slots)
            slots.append(seq)
            group.append(seq)
        if not group:
            return None
        del self.waiting[variant]
        if line:
            self.waiting[variant] = line  # to the end: the other variants' turn
        return self._batch(variant, group, width)

    def _has_room(self, seq: Sequence) -> bool:
        if self.num_running >= self.limits.max_num_seqs:
            return False
        return self._reserved(seq) <= self.limits.max_cache_tokens

    def _reserved(self, newcomer: Sequence | None = None) -> int:
        """Tokens of all caches once every running sequence, and the newcomer, is at its longest."""
        lines = {variant: [*seqs] for variant, seqs in self.running.items()}
        if newcomer is not None:
            lines.setdefault(newcomer.request.variant, []).append(newcomer)
        total = 0
        for seqs in lines.values():
            num_slots, num_tokens = cache_shape(len(seqs), max(seq.max_len for seq in seqs))
            total += num_slots * num_tokens
        return total

    def _batch(self, variant: "Variant", seqs: list[Sequence], width: int) -> Batch:
        slots = self.running[variant]
        longest = max(seq.num_cached for seq in slots)
        newest = max(seq.num_cached for seq in seqs) + width
        return Batch(variant, tuple(seqs), width, cache_shape(len(slots), max(longest, newest)))

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if a slot is lost, shared or beyond the limits."""
        assert self.num_running <= self.limits.max_num_seqs
        assert self._reserved() <= self.limits.max_cache_tokens
        for variant, slots in self.running.items():
            assert slots, variant.name
            assert [seq.slot for seq in slots] == list(range(len(slots))), variant.name
            assert all(seq.num_uncached > 0 for seq in slots), variant.name
        for variant, line in self.waiting.items():
            assert line, variant.name
            assert all(seq.slot is None and seq.num_cached == 0 for seq in line), variant.name
