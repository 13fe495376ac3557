import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.block_table import BlockTable
from app.engine.cache.pages import PAGE_TOKENS, PagePool
from app.engine.scheduling.scheduler import Batch, EngineLimits, Scheduler
from app.engine.scheduling.sequence import Sequence
from app.engine.variant import Variant
from tests.support.engine_requests import request, variant
from tests.support.integrity import check_scheduler

DENSE, PRUNED = variant(), variant(pruned=True)
OTHER = variant(family="gpt2")
NUM_BLOCKS = {DENSE: 3, PRUNED: 2, OTHER: 1}


def sequence(
    num_prompt: int,
    of: Variant = DENSE,
    max_new_tokens: int = 8,
    *,
    pool: PagePool | None = None,
    tokens: list[int] | None = None,
    root: bytes | None = None,
) -> Sequence:
    each = request(tokens or [5] * num_prompt, of, max_new_tokens=max_new_tokens)
    table = BlockTable(pool or PagePool(100_000), NUM_BLOCKS[of], root)
    return Sequence(each, generator=None, table=table)


def scheduler(*seqs: Sequence, **limits: int) -> Scheduler:
    each = Scheduler(EngineLimits(**limits))
    for seq in seqs:
        each.add(seq)
    return each


def run_next(each: Scheduler) -> Batch:
    """What the engine does with a batch, without a model: every token that is generated is a 5."""
    batch = each.next_batch()
    assert batch is not None
    for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
        assert seq.pages.num_tokens >= seq.num_cached + num, "a token has no page"
        seq.num_cached += num
        seq.pages.publish(seq.tokens, seq.num_cached - num, seq.num_cached)
        if not seq.num_uncached:
            seq.tokens.append(5)
    check_scheduler(each)
    return batch


def test_it_needs_no_torch() -> None:
    code = "import sys, app.engine.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_to_do_is_no_batch() -> None:
    assert scheduler().next_batch() is None


def test_prompts_that_fit_one_batch_are_read_together_the_shortest_first() -> None:
    seqs = [sequence(length) for length in (3, 8, 5)]
    batch = run_next(scheduler(*seqs))
    assert batch.sequences == (seqs[0], seqs[2], seqs[1])
    assert batch.num_scheduled_tokens == (3, 5, 8)


def test_what_is_left_of_a_batch_is_for_the_whole_pages_of_a_longer_prompt() -> None:
    short, long, last = sequence(2), sequence(500), sequence(400)
    each = scheduler(short, long, last, max_batch_tokens=100)
    batch = run_next(each)
    assert batch.sequences == (short, last)
    assert batch.num_scheduled_tokens == (2, 98 - 98 % PAGE_TOKENS)


def test_a_running_sequence_waits_for_one_prefill_at_most() -> None:
    each = scheduler(sequence(4))
    run_next(each)
    each.add(sequence(100))
    each.add(sequence(500))
    are_decodes = [run_next(each).is_one_token_each for _ in range(6)]
    assert not all(are_decodes)
    assert all(map(any, itertools.pairwise(are_decodes)))


def test_a_long_prompt_is_read_in_chunks_between_decodes() -> None:
    running, long = sequence(4), sequence(50)
    each = scheduler(running, max_batch_tokens=20)
    run_next(each)
    each.add(long)
    batches = [run_next(each) for _ in range(6)]
    expected = [(16,), (1,), (16,), (1,), (18,), (1, 1)]
    assert [batch.num_scheduled_tokens for batch in batches] == expected
    assert long.num_uncached == 1
    assert len(long.tokens) == 50 + 2  # one behind the prompt, one decoded


def test_no_decode_comes_between_prompts_where_all_just_got_a_token() -> None:
    each = scheduler(sequence(16), max_batch_tokens=20)
    run_next(each)
    each.add(sequence(16))
    batches = [run_next(each) for _ in range(2)]
    assert [batch.num_scheduled_tokens for batch in batches] == [(16,), (1, 1)]


def test_short_prompts_pass_a_long_one_which_is_read_all_the_same() -> None:
    long, pool = sequence(640), PagePool(10**6)
    each = scheduler(long, max_batch_tokens=64)
    run_next(each)
    num_batches = 0
    while long.num_generated == 0:
        each.add(late := sequence(40, pool=pool))  # as many as can be read
        while not late.num_generated:
            run_next(each)
        for seq in [*each.running[DENSE]]:
            if seq is not long and seq.num_generated:
                each.remove(seq)
        num_batches += 1
        assert num_batches < 400, "the long prompt is starved"


def test_a_prompt_that_was_passed_over_for_long_comes_before_shorter_ones() -> None:
    each = scheduler(sequence(63), long := sequence(64), max_batch_tokens=64)
    num_prefills = 0
    while not long.num_generated:
        each.add(sequence(63))
        num_prefills += not run_next(each).is_decode
    assert 10 < num_prefills < 20


def test_a_decode_takes_every_running_sequence_of_a_variant() -> None:
    seqs = [sequence(3), sequence(40), sequence(5)]
    each = scheduler(*seqs, max_batch_tokens=20)
    decodes = [batch for batch in (run_next(each) for _ in range(12)) if batch.is_one_token_each]
    assert set(decodes[-1].sequences) == set(seqs)


def test_variants_take_turns() -> None:
    each = scheduler(sequence(3, DENSE), sequence(3, PRUNED))
    for _ in range(2):  # prefills
        run_next(each)
    served = [run_next(each).variant for _ in range(7)]
    assert all(one is not other for one, other in itertools.pairwise(served[1:]))


def test_a_flood_of_one_variant_does_not_keep_another_waiting() -> None:
    each = scheduler(*[sequence(10) for _ in range(50)], max_batch_tokens=20)
    late = sequence(10, PRUNED)
    each.add(late)
    for _ in range(3):
        run_next(each)
    assert late.is_running


def test_a_short_prompt_waits_for_one_chunk_of_another_variants_long_one() -> None:
    each = scheduler(*[sequence(500, PRUNED) for _ in range(3)], max_batch_tokens=20)
    run_next(each)
    late = sequence(10)
    each.add(late)
    assert [run_next(each).sequences == (late,) for _ in range(2)] == [False, True]


def test_a_long_prompt_alone_is_read_without_decodes_in_between() -> None:
    each = scheduler(sequence(96), max_batch_tokens=32)
    assert [run_next(each).num_scheduled_tokens for _ in range(4)] == [(32,)] * 3 + [(1,)]


def test_long_prompts_of_several_variants_are_read_in_turn() -> None:
    each = scheduler(*[sequence(320, of) for of in (DENSE, DENSE, PRUNED)], max_batch_tokens=32)
    chunks = [
        batch
        for batch in (run_next(each) for _ in range(30))
        if batch.num_scheduled_tokens == (32,)
    ]
    assert [batch.variant for batch in chunks[:8]] == [DENSE, PRUNED] * 4


@settings(max_examples=60)
@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from([DENSE, PRUNED, OTHER]),
            st.sampled_from([1, 2, 7, 30, 90]),  # tokens of the prompt
            st.integers(0, 3),  # batches since the arrival before
        ),
        min_size=1,
        max_size=15,
    ),
    max_batch_tokens=st.sampled_from([1, 8, 20]),
    max_num_seqs=st.integers(1, 12),
)
def test_a_running_sequence_waits_for_one_chunk_and_one_decode_of_each_other_variant(
    arrivals: list[tuple[Variant, int, int]], max_batch_tokens: int, max_num_seqs: int
) -> None:
    each = scheduler(max_batch_tokens=max_batch_tokens, max_num_seqs=max_num_seqs)
    passed_over: dict[Sequence, list[Batch]] = {}  # since its last token
    due = [(of, length, wait) for of, length, wait in arrivals]
    while due or each.num_running or each.num_waiting:
        if due and not (each.num_running and due[0][2]):
            of, length, _ = due.pop(0)
            each.add(sequence(length, of))
        elif due:
            due[0] = (*due[0][:2], due[0][2] - 1)
        batch = run_next(each)
        assert sum(batch.num_scheduled_tokens) <= max(max_batch_tokens, len(batch.sequences))
        for seq, batches in passed_over.items():
            batches.append(batch)
            assert len(batches) <= 1 + 2 or seq in batch.sequences
            assert sum(not one.is_decode for one in batches) <= 1
        for seq in batch.sequences:
            if seq.num_generated:
                passed_over[seq] = []
            if seq.num_generated >= seq.request.params.max_new_tokens:
                each.remove(seq)
                del passed_over[seq]


def test_no_more_sequences_run_than_are_allowed() -> None:
    seqs = [sequence(3, of) for of in (DENSE, PRUNED) * 3]
    each = scheduler(*seqs, max_num_seqs=4)
    for _ in range(8):
        run_next(each)
    assert (each.num_running, each.num_waiting) == (4, 2)
    each.remove(each.running[DENSE][0])
    for _ in range(3):
        run_next(each)
    assert (each.num_running, each.num_waiting) == (4, 1)


def test_answers_reserve_no_room() -> None:
    pool = PagePool(3 * 4)  # four pages
    seqs = [sequence(10, max_new_tokens=100, pool=pool) for _ in range(2)]
    each = scheduler(*seqs)
    run_next(each)
    assert (each.num_running, each.num_waiting) == (2, 0)
    assert pool.num_used == 3 * 2


def test_where_no_page_is_free_the_last_one_that_arrived_is_read_again_later() -> None:
    pool = PagePool(3 * 4)
    seqs = [sequence(PAGE_TOKENS - 2, max_new_tokens=200, pool=pool) for _ in range(2)]
    each = scheduler(*seqs)
    while not each.counts[DENSE.name].num_preemptions:
        run_next(each)
    first, last = seqs
    assert first.is_running
    assert (last.is_running, last.num_cached, last.pages.pages) == (False, 0, [])
    made = last.num_generated
    assert made > PAGE_TOKENS
    each.remove(first)
    while last.num_generated == made:
        run_next(each)
    assert last.is_running
    assert last.num_generated == made + 1


def test_what_was_preempted_comes_before_what_arrives() -> None:
    pool = PagePool(3 * 4)
    seqs = [sequence(PAGE_TOKENS - 2, max_new_tokens=200, pool=pool) for _ in range(2)]
    each = scheduler(*seqs)
    while not each.counts[DENSE.name].num_preemptions:
        run_next(each)
    each.add(late := sequence(3, pool=pool))
    for _ in range(5):
        run_next(each)
    assert not late.is_running, "it took the page that another one waits for"
    each.remove(seqs[0])
    run_next(each)
    assert seqs[1].is_running


def test_a_prompt_runs_once_all_of_it_has_room() -> None:
    pool = PagePool(3 * 6)
    running = sequence(PAGE_TOKENS, max_new_tokens=50, pool=pool)
    large, small = sequence(5 * PAGE_TOKENS, pool=pool), sequence(10, PRUNED, pool=pool)
    each = scheduler(running, large, small)
    for _ in range(3):
        run_next(each)
    assert (large.is_running, small.is_running) == (False, True)
    for seq in (running, small):
        each.remove(seq)
    run_next(each)
    assert large.is_running


def test_what_was_passed_over_for_long_gets_what_becomes_free() -> None:
    pool = PagePool(3 * 12)
    each = scheduler(sequence(6, max_new_tokens=1000, pool=pool), max_batch_tokens=64)
    run_next(each)
    each.add(large := sequence(12 * PAGE_TOKENS - 8, pool=pool))
    for _ in range(60):
        each.add(sequence(2, pool=pool))
        for _ in range(2):
            run_next(each)
        for seq in [*each.running[DENSE]][1:]:
            each.remove(seq)
    assert each.num_waiting > 20, "small ones pass it for ever"
    assert not large.is_running


def test_pages_that_are_there_are_not_read_again() -> None:
    pool, prompt = PagePool(10**4), [7] * (3 * PAGE_TOKENS + 5)
    first, again = (sequence(0, pool=pool, tokens=prompt, root=b"root") for _ in range(2))
    stranger = sequence(0, pool=pool, tokens=prompt, root=b"other")
    each = scheduler(first)
    run_next(each)
    for seq in (again, stranger):
        each.add(seq)
    while not stranger.num_generated:
        run_next(each)
    assert (first.num_reused, again.num_reused, stranger.num_reused) == (0, 3 * PAGE_TOKENS, 0)
    counts = each.counts[DENSE.name]
    assert (counts.num_queries, counts.num_hits) == (3 * len(prompt), 3 * PAGE_TOKENS)


def test_prompts_that_begin_alike_are_not_read_twice_when_they_come_at_once() -> None:
    pool, prompt = PagePool(10**4), [7] * (4 * PAGE_TOKENS)
    seqs = [sequence(0, pool=pool, tokens=[*prompt, at], root=b"root") for at in range(5)]
    each = scheduler(*seqs, max_batch_tokens=512)
    num_read = 0
    while not all(seq.num_generated for seq in seqs):
        batch = run_next(each)
        num_read += 0 if batch.is_decode else sum(batch.num_scheduled_tokens)
    assert num_read == len(prompt) + 5


def test_a_prompt_that_is_cut_alone_is_cut_in_the_same_places_beside_others() -> None:
    cut = sequence(50, max_new_tokens=3)
    cut.is_cut_alone = True
    each = scheduler(sequence(7), cut, sequence(5), max_batch_tokens=20)
    parts = []
    while cut.num_generated < 3:
        batch = run_next(each)
        parts += [
            num
            for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
            if seq is cut
        ]
    assert parts == [20, 20, 10, 1, 1]
    cut.restart()
    each.running[DENSE].remove(cut)
    each._enqueue(cut)
    parts.clear()
    while cut.num_generated < 5:
        batch = run_next(each)
        parts += [
            num
            for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
            if seq is cut
        ]
    assert parts[:5] == [20, 20, 10, 1, 1], "generated tokens are read as they were made"


def test_integrity_notices_a_token_without_a_page() -> None:
    seq = sequence(3)
    each = scheduler(seq)
    run_next(each)
    seq.num_cached = PAGE_TOKENS + 1
    seq.tokens += [5] * PAGE_TOKENS
    with pytest.raises(AssertionError):
        check_scheduler(each)


@pytest.mark.parametrize(
    "limit",
    [
        {"max_num_seqs": 0},
        {"max_batch_tokens": 0},
        {"kv_cache_bytes": 0},
        {"max_model_len": -1},
    ],
)
def test_limits_under_which_nothing_could_run_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EngineLimits(**limit)


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens"),
    [([8_000] + [64] * 63, 500), ([200] * 64, 1_024)],
    ids=["a long one beside short ones", "conversations"],
)
def test_all_run_at_once_within_the_usual_room(prompts: list[int], max_new_tokens: int) -> None:
    pool = PagePool(NUM_BLOCKS[DENSE] * 65_536 // PAGE_TOKENS)
    seqs = [sequence(length, max_new_tokens=max_new_tokens, pool=pool) for length in prompts]
    each = scheduler(*seqs)
    while each.num_running < 64:
        batch = each.next_batch()
        assert batch is not None, "not all of them run"
        for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
            seq.num_cached += num
            if not seq.num_uncached:
                seq.tokens.append(5)
    assert not any(counts.num_preemptions for counts in each.counts.values())
    assert max(seq.num_generated for seq in seqs) < 50  # none has to end before another begins
