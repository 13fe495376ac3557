"""Scheduling: which sequences run, and what each forward reads.

Works on sequences and counts, without torch. The engine carries out its batches.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING

from app.engine.cache.pages import PAGE_TOKENS, PagePool
from app.engine.scheduling.fair_shares import FairShares
from app.engine.scheduling.order import arrival, is_due, num_rest, overlap, urgency
from app.engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from app.engine.variant import Variant

BACKGROUND_CHUNK = 64  # prompt tokens of one background forward, which a live request waits for
_SHORT_END = 1 / 8  # of the tokens of a batch
_WORTH_WAITING = 64  # tokens that another prompt of the same batch reads already


@dataclass(frozen=True)
class EngineLimits:
    max_num_seqs: int = 64  # running sequences of all variants
    max_batch_tokens: int = 512  # of one prefill forward
    kv_cache_bytes: int | None = None  # for each shape of keys and values; None: by free memory
    max_model_len: int | None = None  # prompt and generated tokens; None is the limit of the model

    def __post_init__(self) -> None:
        """Raises ``ValueError`` if no request could run."""
        optional = (self.kv_cache_bytes, self.max_model_len)
        limits = (self.max_num_seqs, self.max_batch_tokens, *(each or 1 for each in optional))
        if min(limits) < 1 or 0 in optional:
            raise ValueError(f"{self}: expected at least 1 each")

    @property
    def num_end_tokens(self) -> int:
        """The tokens of a prompt's end that a batch has beyond ``max_batch_tokens``, instead of
        leaving them to a forward of their own. Whole pages."""
        return int(self.max_batch_tokens * _SHORT_END) // PAGE_TOKENS * PAGE_TOKENS


@dataclass(eq=False)
class CacheCounts:
    """Of one variant, since the start."""

    num_queries: int = 0  # tokens of prompts that looked for pages
    num_hits: int = 0  # tokens of prompts whose pages were there
    num_preemptions: int = 0  # sequences that lost their pages for lack of others


@dataclass(frozen=True)
class Batch:
    """One forward: for each sequence, the next ``num_scheduled_tokens`` of its uncached tokens.

    The sequences are of one variant, and have pages for these tokens.
    """

    variant: "Variant"
    sequences: tuple[Sequence, ...]
    num_scheduled_tokens: tuple[int, ...]  # of each sequence
    is_decode: bool = False  # the next token of each sequence that has read its prompt

    @property
    def is_reproducible(self) -> bool:
        """Whether a sequence asks for it: the kernels of a batch are those of all of it."""
        return any(seq.request.params.reproducible for seq in self.sequences)

    @property
    def is_one_token_each(self) -> bool:
        return max(self.num_scheduled_tokens) == 1


class Scheduler:
    """Waiting and running sequences of all variants.

    A round is one prefill, if a prompt is to be read, and then one decode of each variant, unless
    all that could decode got a token by this prefill. Prefills rotate over the variants. Each reads
    parts of prompts up to a number of tokens: those of the tenant that was served least, and of one
    tenant the shortest rest first, but before it those that were passed over for long. So a prompt
    delays others and running sequences by one chunk at a time, however long it is.

    Sequences get pages as they grow. If there is none for a running one, the last one to arrive of
    the tenant that was served most is preempted: it leaves its pages and reads its tokens again
    later.

    Background sequences run one at a time, and only without live ones.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.counts: defaultdict[str, CacheCounts] = defaultdict(CacheCounts)  # by variant's name
        self.waiting: dict[Variant, list[Sequence]] = {}  # in the order of arrival
        self.running: dict[Variant, list[Sequence]] = {}
        self._shares = FairShares()
        self._serials = count(1)
        self._turns: deque[Variant] = deque()  # to prefill, of all with sequences
        self._decodes_due: deque[Variant] = deque()
        self._background: deque[Sequence] = deque()  # all but the admitted one
        self._admitted_background: Sequence | None = None  # the only one in waiting and running

    @property
    def has_live(self) -> bool:
        return self._admitted_background is None and bool(self.waiting or self.running)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(map(len, self.running.values()))

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. A live one may only be added after ``preempt``."""
        seq.serial = next(self._serials)
        if seq.request.is_background:
            self._background.append(seq)
        else:
            assert self._admitted_background is None
            self._enqueue(seq)

    def preempt(self) -> Sequence | None:
        """Stop the running background sequence, which restarts later."""
        seq = self._admitted_background
        if seq is not None:
            self.remove(seq)
            seq.restart()
            seq.was_alone = False
            self._background.appendleft(seq)
        return seq

    def leave_pages(self, pool: PagePool) -> None:
        """Let all sequences that have pages of this pool wait again."""
        for seq in [*self._running_in(pool)]:
            self._preempt(seq)

    def remove(self, seq: Sequence) -> None:
        """Remove a sequence, which leaves its pages."""
        if seq in self._background:
            self._background.remove(seq)
            return
        if seq is self._admitted_background:
            self._admitted_background = None
        self._leave(seq)
        seq.pages.release()
        seq.is_running = False
        variant = seq.request.variant
        if variant not in self.waiting and variant not in self.running:
            self._turns.remove(variant)
            # a removed variant must not keep its weights alive
            self._decodes_due = deque(due for due in self._decodes_due if due is not variant)

    def next_batch(self) -> Batch | None:
        """The next forward, None without work. Gives pages to its sequences."""
        if self._background and not self.waiting and not self.running:
            self._admitted_background = self._background.popleft()
            self._enqueue(self._admitted_background)
        while True:
            if (decode := self._due_decode()) is not None:
                return self._counted(decode)
            prefill = self._prefill()
            if self._is_decoding:
                self._decodes_due.extend(self.running)
            elif prefill is None:
                if not self.running:
                    return None
                self._preempt_last(chain.from_iterable(self.running.values()))
            if prefill is not None:
                return self._counted(prefill)

    def again(self, batch: Batch) -> Batch | None:
        """The decode behind this one, whose tokens are not known yet. Gives pages to its sequences.

        None if another forward may come first, a sequence ends there, or there is no page.
        """
        seqs, may_start = batch.sequences, self.num_running < self.limits.max_num_seqs
        if self._admitted_background or (self.waiting and may_start):
            return None
        if self.running != {batch.variant: [*seqs]} or any(seq.is_at_its_last for seq in seqs):
            return None
        has_pages = all(seq.pages.grow(seq.num_cached + 2) for seq in seqs)
        return self._counted(batch) if has_pages else None

    @property
    def _is_decoding(self) -> bool:
        return any(seq.num_uncached == 1 for seq in chain.from_iterable(self.running.values()))

    def _counted(self, batch: Batch) -> Batch:
        for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
            self._shares.serve(seq.request.tenant, num)
        return batch

    def _enqueue(self, seq: Sequence) -> None:
        variant = seq.request.variant
        insort(self.waiting.setdefault(variant, []), seq, key=arrival)
        if variant not in self._turns:
            self._turns.append(variant)

    def _leave(self, seq: Sequence) -> None:
        """Take a sequence from those that wait or run."""
        queues, variant = self.running if seq.is_running else self.waiting, seq.request.variant
        queues[variant].remove(seq)
        if not queues[variant]:
            del queues[variant]

    def _due_decode(self) -> Batch | None:
        """The next one that is due in this round."""
        while self._decodes_due:
            if (decode := self._decode(self._decodes_due.popleft())) is not None:
                return decode
        return None

    def _decode(self, variant: "Variant") -> Batch | None:
        """The next token of all sequences that have read their prompts, as far as there are pages
        for them."""
        due = [seq for seq in self.running.get(variant, ()) if seq.num_uncached == 1]
        for seq in sorted(due, key=arrival):
            if seq.is_running:
                self._grow(seq)
        seqs = [seq for seq in due if seq.is_running]
        return Batch(variant, tuple(seqs), (1,) * len(seqs), is_decode=True) if seqs else None

    def _grow(self, seq: Sequence) -> None:
        """Give a sequence room for its next token. Another one makes it, or the sequence itself
        where it comes last."""
        while not seq.pages.grow(seq.num_cached + 1):
            self._preempt_last(self._running_in(seq.pages.pool))
            if not seq.is_running:
                return

    def _preempt_last(self, seqs: Iterable[Sequence]) -> None:
        """Let that of these running sequences wait again which comes last."""
        self._preempt(max(seqs, key=self._rank))

    def _preempt(self, seq: Sequence) -> None:
        self._leave(seq)
        seq.restart()
        self._enqueue(seq)
        self._counts_of(seq).num_preemptions += 1

    def _running_in(self, pool: PagePool) -> Iterator[Sequence]:
        seqs = chain.from_iterable(self.running.values())
        return (seq for seq in seqs if seq.pages.pool is pool)

    def _prefill(self) -> Batch | None:
        """The prefill of the next variant in turn."""
        seqs = chain.from_iterable((*self.waiting.values(), *self.running.values()))
        self._shares.keep_only(seq.request.tenant for seq in seqs)
        held_back = self._held_back()
        for variant in self._turns:
            batch = self._pack(variant, held_back)
            if batch is not None:
                self._turns.remove(variant)
                self._turns.append(variant)
                self._count_passed(batch)
                return batch
        return None

    def _rank(self, seq: Sequence) -> tuple[int, int]:
        """Tenants by what they were served, and the sequences of one by their arrival."""
        return self._num_served(seq), seq.serial

    def _held_back(self) -> Sequence | None:
        """The first of those that were passed over for long, if it finds no room. All that becomes
        free is for it, but for tenants that were served less."""
        waiting = chain.from_iterable(self.waiting.values())
        first = min((seq for seq in waiting if is_due(seq)), key=self._rank, default=None)
        return None if first is None or self._has_room(first) else first

    def _may_start(self, seq: Sequence, held_back: Sequence | None) -> bool:
        return held_back is None or self._num_served(seq) < self._num_served(held_back)

    def _num_served(self, seq: Sequence) -> int:
        return self._shares.num_served(seq.request.tenant)

    def _in_turn(self, seqs: Iterable[Sequence]) -> list[Sequence]:
        """The order in which they are read: by tenants, and those of one by urgency."""
        by_urgency = sorted(((num_rest(seq), seq) for seq in seqs), key=urgency)
        return self._shares.in_turn((seq.request.tenant, rest, seq) for rest, seq in by_urgency)

    def _count_passed(self, batch: Batch) -> None:
        for seqs in (*self.waiting.values(), *self.running.values()):
            for seq in seqs:
                if seq.num_uncached > 1 or not seq.is_running:
                    seq.num_passed += 1
        for seq in batch.sequences:
            seq.num_passed = 0

    def _pack(self, variant: "Variant", held_back: Sequence | None) -> Batch | None:
        """Parts of the variant's prompts that fit into one batch, None if there is none."""
        candidates = [seq for seq in self.running.get(variant, ()) if seq.num_uncached > 1]
        waiting = self.waiting.get(variant, ())
        candidates += [seq for seq in waiting if self._may_start(seq, held_back)]
        chosen: list[Sequence] = []
        nums: list[int] = []
        read: set[bytes] = set()  # keys of the pages that this batch fills
        for seq in self._in_turn(candidates):
            rest = self.limits.max_batch_tokens - sum(nums)
            if rest <= 0:
                break
            if (num := self._schedule(seq, rest, read, is_first=not chosen)) > 0:
                chosen.append(seq)
                nums.append(num)
                read.update(seq.pages.keys(seq.tokens, (seq.num_cached + num) // PAGE_TOKENS))
        return Batch(variant, tuple(chosen), tuple(nums)) if chosen else None

    def _schedule(self, seq: Sequence, rest: int, read: set[bytes], *, is_first: bool) -> int:
        """Let a sequence read up to ``rest`` tokens, and admit it if it waits. Returns how many, 0
        if it has to wait for pages or for what this batch reads."""
        reused = seq.pages.count_found(seq.tokens, seq.num_cached)
        num = self._chunk(seq, seq.num_cached + reused, rest, is_first=is_first)
        if not num or overlap(seq, seq.num_cached + reused, read) >= _WORTH_WAITING:
            return 0
        if not seq.is_running:
            if not self._has_room(seq):
                return 0
            self._admit(seq)
        self._counts_of(seq).num_hits += seq.take_found()
        if not seq.pages.grow(seq.num_cached + num):
            return 0
        return num

    def _counts_of(self, seq: Sequence) -> CacheCounts:
        return self.counts[seq.request.variant.name]

    def _admit(self, seq: Sequence) -> None:
        self._leave(seq)
        seq.is_running = True
        if seq.pages.can_find and not seq.num_preemptions:
            self._counts_of(seq).num_queries += len(seq.tokens)
        self.running.setdefault(seq.request.variant, []).append(seq)

    def _chunk(self, seq: Sequence, num_cached: int, rest: int, *, is_first: bool) -> int:
        """The tokens of the next forward behind ``num_cached``, 0 if ``rest`` is too small.

        A part of a prompt ends with a page where it can, so that what follows may be found.
        """
        longest, num_end = self.limits.max_batch_tokens, self.limits.num_end_tokens
        if seq.request.is_background:
            longest, num_end = min(longest, BACKGROUND_CHUNK), 0
        if seq.is_cut_alone:
            left = len(seq.request.prompt_ids) - num_cached
            num = min(left, longest - num_cached % longest) if left > 0 else 1
            return num if num <= rest else 0
        left, num = len(seq.tokens) - num_cached, min(longest, rest)
        if left <= num + num_end:
            return left
        whole = num - (num_cached + num) % PAGE_TOKENS
        return whole if whole > 0 else num * is_first

    def _has_room(self, seq: Sequence) -> bool:
        """Whether a waiting sequence may run: there are pages for all of its tokens, all that
        running prompts have still to read, and a further page for each running sequence."""
        if self.num_running >= self.limits.max_num_seqs:
            return False
        promised = sum(
            each.pages.num_missing(len(each.tokens)) + each.pages.num_blocks
            for each in self._running_in(seq.pages.pool)
        )
        needed = seq.pages.num_needed(seq.tokens)
        return promised + needed <= seq.pages.pool.num_available
