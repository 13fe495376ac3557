"""Who runs next: admission to slots, and turns between prefill and decode and between variants.

Knows sequences and counts. It imports no torch and touches no cache; the engine does what it says.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.engine.sequence import Sequence

if TYPE_CHECKING:
    from app.engine.variant import Variant

_TOKENS_PER_GROWTH = 64  # slots grow longer in these steps

BACKGROUND_CHUNK = 64  # prompt tokens of one background forward: what a live request waits for


class InvalidLimits(ValueError):
    """Limits under which nothing could ever run."""


@dataclass(frozen=True)
class EngineLimits:
    max_num_seqs: int = 64  # sequences that hold a slot, of all variants together
    max_batch_tokens: int = 512  # of one prefill forward
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
    """One forward: each sequence is fed so many of the tokens it has not cached yet.

    The sequences are of one variant and hold neighbouring slots, in order. Where there are several
    and they are fed more than a token each, nothing of them is cached yet.
    """

    variant: "Variant"
    sequences: tuple[Sequence, ...]
    num_scheduled_tokens: tuple[int, ...]  # of each
    cache_shape: tuple[int, int]  # slots, and tokens per slot, that the variant's cache needs
    is_decode: bool = False  # a token for every sequence of the variant that runs

    @property
    def is_one_token_each(self) -> bool:
        return max(self.num_scheduled_tokens) == 1


def cache_shape(num_slots: int, num_tokens: int) -> tuple[int, int]:
    """What a cache allocates for this many: rounded up, so that it seldom has to be copied."""
    steps = -(-num_tokens // _TOKENS_PER_GROWTH)
    return 1 << (num_slots - 1).bit_length(), steps * _TOKENS_PER_GROWTH


class Scheduler:
    """Prompts wait in one line per variant; running sequences are kept in the order of their slots.

    A round is one prefill, if anything waits, and then one decode of each variant. Prefills go
    round the variants: the one whose turn it is reads on in its half-read prompt, or else admits
    from its line. So a running sequence is held up for one chunk at a time, however many long
    prompts come, and a short prompt waits for no other variant's long one.

    Background sequences run one at a time, and only while no live one waits or runs.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.waiting: dict[Variant, deque[Sequence]] = {}
        self.running: dict[Variant, list[Sequence]] = {}  # index = slot
        self._turns: deque[Variant] = deque()  # to prefill, of all that wait or run
        self._decodes_due: deque[Variant] = deque()
        self._background: deque[Sequence] = deque()  # all but the admitted one
        self._admitted_background: Sequence | None = None  # then alone in waiting or running

    @property
    def has_live(self) -> bool:
        return self._admitted_background is None and bool(self.waiting or self.running)

    @property
    def num_sequences(self) -> int:
        """Live and background ones."""
        return self.num_waiting + self.num_running + len(self._background)

    @property
    def next_background(self) -> Sequence | None:
        """The background sequence that runs next, None while anything live does."""
        if self._admitted_background is not None or self.has_live or not self._background:
            return self._admitted_background
        return self._background[0]

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
        """Queue a sequence. A live one may only be added after ``preempt``."""
        if seq.request.is_background:
            self._background.append(seq)
        else:
            assert self._admitted_background is None
            self._enqueue(seq)

    def preempt(self) -> Sequence | None:
        """Take the slot of the background sequence that has one; it starts over later."""
        seq = self._admitted_background
        if seq is not None:
            self.remove(seq)
            seq.slot, seq.num_cached, seq.was_alone = None, 0, False
            self._background.appendleft(seq)
        return seq

    def _enqueue(self, seq: Sequence) -> None:
        variant = seq.request.variant
        self.waiting.setdefault(variant, deque()).append(seq)
        if variant not in self._turns:
            self._turns.append(variant)

    def remove(self, seq: Sequence) -> int | None:
        """Forget a sequence; returns the slot that is free now, None if it held none.

        That is always the last slot of the variant: its tenant takes over the slot of ``seq``.
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
            # nothing may hold the weights of what is gone
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
        """The next forward, None if there is nothing to do; admits waiting sequences to slots."""
        if self._background and not self.waiting and not self.running:
            self._admitted_background = self._background.popleft()
            self._enqueue(self._admitted_background)
        while True:
            while self._decodes_due:
                variant = self._decodes_due.popleft()
                slots = self.running.get(variant, [])
                if any(seq.num_uncached == 1 for seq in slots):  # not for a half-read prompt alone
                    batch = self._batch(variant, slots, [1] * len(slots))
                    return replace(batch, is_decode=True)
            prefill = self._prefill()
            self._decodes_due.extend(self.running)
            if prefill is not None or not self.running:
                return prefill

    def _prefill(self) -> Batch | None:
        """Of the next variant in turn. One whose prompt finds no room keeps its turn, and until
        it does, nobody else is admitted: or others would take each slot that becomes free."""
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
        """The next chunk of a prompt that was longer than a batch; a variant has one at most."""
        for seq in self.running.get(variant, ()):
            if seq.num_uncached > 1:
                return self._batch(variant, [seq], [self._chunk(seq)])
        return None

    def _admit(self, variant: "Variant") -> Batch | None:
        """As many prompts from the front of the line as fit into one batch; None if none does."""
        line = self.waiting[variant]
        group: list[Sequence] = []
        num_scheduled_tokens: list[int] = []
        while line and self._has_room(line[0]):
            num_scheduled_tokens.append(self._chunk(line[0]))
            if group and sum(num_scheduled_tokens) > self.limits.max_batch_tokens:
                num_scheduled_tokens.pop()
                break
            seq = line.popleft()
            slots = self.running.setdefault(variant, [])
            seq.slot = len(slots)
            slots.append(seq)
            group.append(seq)
        if not line:
            del self.waiting[variant]
        return self._batch(variant, group, num_scheduled_tokens) if group else None

    def _chunk(self, seq: Sequence) -> int:
        """Tokens of its prompt that one forward takes at most."""
        longest = self.limits.max_batch_tokens
        if seq.request.is_background:
            longest = min(longest, BACKGROUND_CHUNK)
        return min(seq.num_uncached, longest)

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
            assert [[*seqs] for seqs in active] == [[seq]], "it is not alone"
        assert all(seq.slot is None and seq.num_cached == 0 for seq in self._background)
        assert sorted(map(id, self._turns)) == sorted(map(id, {**self.waiting, **self.running}))
        for variant, slots in self.running.items():
            assert slots, variant.name
            assert [seq.slot for seq in slots] == list(range(len(slots))), variant.name
            assert all(seq.num_uncached > 0 for seq in slots), variant.name
            assert sum(seq.num_uncached > 1 for seq in slots) <= 1, variant.name
        for variant, line in self.waiting.items():
            assert line, variant.name
            assert all(seq.slot is None and seq.num_cached == 0 for seq in line), variant.name
