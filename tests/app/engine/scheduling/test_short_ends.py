"""The short end of a prompt is read with what is before it, and not in a forward of its own."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.block_table import BlockTable
from app.engine.cache.pages import PagePool
from app.engine.scheduling.scheduler import EngineLimits, Scheduler
from app.engine.scheduling.sequence import Sequence
from tests.support.engine_requests import request

BATCH, END = 512, 64


def prefills(*prompts: list[int], is_background: bool = False) -> list[tuple[int, ...]]:
    """The tokens of each sequence in each prefill of these prompts, which come at once."""
    each, pool = Scheduler(EngineLimits(max_batch_tokens=BATCH)), PagePool(10**5)
    for prompt in prompts:
        asked = replace(request(prompt, max_new_tokens=1), is_background=is_background)
        each.add(Sequence(asked, None, table=BlockTable(pool, 1, b"root")))
    found = []
    while (batch := each.next_batch()) is not None:
        found += [] if batch.is_decode else [batch.num_scheduled_tokens]
        for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
            seq.num_cached += num
            seq.pages.publish(seq.tokens, seq.num_cached - num, seq.num_cached)
            if not seq.num_uncached:
                each.remove(seq)
    return found


def prompt(length: int, of: int = 5) -> list[int]:
    return [of] * length


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (BATCH + END, [(BATCH + END,)]),
        (BATCH + END + 1, [(BATCH,), (END + 1,)]),
        (2 * BATCH + END, [(BATCH,), (BATCH + END,)]),
    ],
)
def test_a_prompt_that_is_a_little_longer_than_a_batch_is_read_at_once(
    length: int, expected: list[tuple[int, ...]]
) -> None:
    assert prefills(prompt(length)) == expected


def test_a_background_prompt_is_never_read_in_larger_parts() -> None:
    assert prefills(prompt(70), is_background=True) == [(64,), (6,)]


def test_the_first_of_prompts_that_begin_alike_is_not_kept_waiting_for_the_ends_of_others() -> None:
    prompts = [prompt(2 * BATCH) + prompt(32, of=6 + at) for at in range(16)]
    assert prefills(*prompts) == [(BATCH,), (BATCH + 32,), (32,) * 15]


@given(lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=20))
@settings(max_examples=50)
def test_no_batch_has_more_than_a_short_end_beyond_the_limit(lengths: list[int]) -> None:
    read = prefills(*(prompt(length, of=at + 3) for at, length in enumerate(lengths)))
    assert max(map(sum, read)) <= BATCH + END
    assert sum(map(sum, read)) == sum(lengths)
