import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.scheduler import Batch, EngineLimits, InvalidLimits, Scheduler, cache_shape
from app.engine.sequence import Sequence
from app.engine.variant import Variant
from tests.support.engine_requests import request, variant

DENSE, PRUNED = variant(), variant(pruned=True)
OTHER = variant(family="gpt2")


def sequence(num_prompt: int, of: Variant = DENSE, max_new_tokens: int = 8) -> Sequence:
    each = request([5] * num_prompt, of, max_new_tokens=max_new_tokens)
    return Sequence(each, generator=None)


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
        seq.num_cached += num
        if not seq.num_uncached:
            seq.tokens.append(5)
    each.check_integrity()
    return batch


def test_it_needs_no_torch() -> None:
    code = "import sys, app.engine.scheduler; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_to_do_is_no_batch() -> None:
    assert scheduler().next_batch() is None


def test_prompts_that_fit_one_batch_are_prefilled_together_in_order_of_arrival() -> None:
    seqs = [sequence(length) for length in (3, 8, 5)]
    batch = run_next(scheduler(*seqs))
    assert batch.sequences == tuple(seqs)
    assert batch.num_scheduled_tokens == (3, 8, 5)
    assert [seq.slot for seq in seqs] == [0, 1, 2]


def test_a_batch_takes_whole_prompts_while_they_fit() -> None:
    short, long, last = sequence(2), sequence(10), sequence(9)
    each = scheduler(short, long, last, max_batch_tokens=20)
    batches = [run_next(each) for _ in range(3)]
    assert [batch.sequences for batch in batches] == [(short, long), (short, long), (last,)]
    assert [batch.num_scheduled_tokens for batch in batches] == [(2, 10), (1, 1), (9,)]


def test_a_running_sequence_waits_for_one_prefill_at_most() -> None:
    each = scheduler(sequence(4))
    run_next(each)
    each.add(sequence(100))
    each.add(sequence(500))
    are_decodes = [run_next(each).is_one_token_each for _ in range(6)]
    assert not all(are_decodes)
    assert all(map(any, itertools.pairwise(are_decodes)))


def test_a_long_prompt_is_prefilled_in_chunks_between_decodes() -> None:
    running, long = sequence(4), sequence(50)
    each = scheduler(running, max_batch_tokens=20)
    run_next(each)
    each.add(long)
    batches = [run_next(each) for _ in range(7)]
    # the last 2 of the 50 are read one by one, in the decodes between the chunks
    expected = [(1,), (20,), (1, 1), (20,), (1, 1), (8,), (1, 1)]
    assert [batch.num_scheduled_tokens for batch in batches] == expected
    assert long.num_uncached == 1
    assert len(long.tokens) == 50 + 2  # one behind the prompt, one decoded


def test_a_decode_takes_every_running_sequence_of_a_variant() -> None:
    seqs = [sequence(3), sequence(40), sequence(5)]
    each = scheduler(*seqs, max_batch_tokens=20)
    decodes = [batch for batch in (run_next(each) for _ in range(12)) if batch.is_one_token_each]
    assert decodes[-1].sequences == tuple(seqs)


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
    assert late.slot == 0


def test_a_short_prompt_waits_for_one_chunk_of_another_variants_long_one() -> None:
    each = scheduler(*[sequence(500, PRUNED) for _ in range(3)], max_batch_tokens=20)
    run_next(each)
    late = sequence(10)
    each.add(late)
    assert [run_next(each).sequences == (late,) for _ in range(2)] == [False, True]


def test_a_long_prompt_alone_is_read_without_decodes_in_between() -> None:
    each = scheduler(sequence(50), max_batch_tokens=20)
    assert [run_next(each).num_scheduled_tokens for _ in range(4)] == [(20,), (20,), (10,), (1,)]


def test_long_prompts_of_several_variants_are_read_in_turn() -> None:
    each = scheduler(*[sequence(100, of) for of in (DENSE, DENSE, PRUNED)], max_batch_tokens=20)
    chunks = [
        batch
        for batch in (run_next(each) for _ in range(30))
        if batch.num_scheduled_tokens == (20,)
    ]
    assert [batch.variant for batch in chunks[:8]] == [DENSE, PRUNED] * 4


@settings(max_examples=60, deadline=None)
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
        cached = [seq.num_cached for seq in batch.sequences]
        assert (
            batch.is_one_token_each
            or cached == list(batch.num_scheduled_tokens)
            or len(cached) == 1
        )
        for seq, batches in passed_over.items():
            batches.append(batch)
            assert len(batches) <= 1 + 2 or seq in batch.sequences
            assert sum(not one.is_one_token_each for one in batches) <= 1
        for seq in batch.sequences:
            if seq.num_generated:
                passed_over[seq] = []
            if seq.num_generated >= seq.request.params.max_new_tokens:
                each.remove(seq)
                del passed_over[seq]


def test_no_more_sequences_run_than_there_are_slots() -> None:
    seqs = [sequence(3, of) for of in (DENSE, PRUNED) * 3]
    each = scheduler(*seqs, max_num_seqs=4)
    for _ in range(8):
        run_next(each)
    assert (each.num_running, each.num_waiting) == (4, 2)
    each.remove(each.running[DENSE][0])
    for _ in range(3):
        run_next(each)
    assert (each.num_running, each.num_waiting) == (4, 1)


def test_room_for_whole_answers_is_reserved_on_admission() -> None:
    seqs = [sequence(10, max_new_tokens=100) for _ in range(3)]
    each = scheduler(*seqs, max_cache_tokens=256)  # two of 128 each
    run_next(each)
    assert (each.num_running, each.num_waiting) == (2, 1)
    assert each.cache_usage == 1.0


def test_what_finds_no_room_keeps_the_turn_until_it_does() -> None:
    running = [sequence(10, max_new_tokens=50) for _ in range(2)]
    large, small = sequence(10, DENSE, max_new_tokens=200), sequence(10, PRUNED)
    each = scheduler(*running, max_cache_tokens=256)
    run_next(each)
    each.add(large)
    each.add(small)
    for _ in range(3):
        run_next(each)
    assert (large.slot, small.slot) == (None, None)
    for seq in running:
        each.remove(seq)
    each.next_batch()
    assert large.slot == 0


def test_the_last_slot_fills_the_gap() -> None:
    seqs = [sequence(3) for _ in range(3)]
    each = scheduler(*seqs)
    run_next(each)
    assert each.remove(seqs[0]) == 2
    assert [seqs[2].slot, seqs[1].slot] == [0, 1]
    each.check_integrity()


def test_a_waiting_sequence_holds_no_slot_to_give_back() -> None:
    seq = sequence(3)
    each = scheduler(seq)
    assert each.remove(seq) is None
    assert each.num_waiting == 0
    assert each.next_batch() is None


def test_integrity_notices_a_slot_held_twice() -> None:
    seqs = [sequence(3), sequence(3)]
    each = scheduler(*seqs)
    run_next(each)
    seqs[1].slot = 0
    with pytest.raises(AssertionError):
        each.check_integrity()


@pytest.mark.parametrize(
    ("num_slots", "num_tokens", "shape"),
    [(1, 1, (1, 64)), (2, 64, (2, 64)), (3, 65, (4, 128)), (64, 500, (64, 512))],
)
def test_caches_grow_in_a_few_steps(
    num_slots: int, num_tokens: int, shape: tuple[int, int]
) -> None:
    assert cache_shape(num_slots, num_tokens) == shape


@pytest.mark.parametrize(
    "limit",
    [
        {"max_num_seqs": 0},
        {"max_batch_tokens": 0},
        {"max_cache_tokens": 63},
        {"max_model_len": -1},
    ],
)
def test_limits_under_which_nothing_could_run_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(InvalidLimits, match="at least 1"):
        EngineLimits(**limit)
