"""Fair shares: between tenants, the one that was served least comes next."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.cache.block_table import BlockTable
from app.engine.cache.pages import PAGE_TOKENS, PagePool
from app.engine.scheduling.fair_shares import FairShares
from app.engine.scheduling.scheduler import Batch, EngineLimits, Scheduler
from app.engine.scheduling.sequence import Sequence
from tests.support.engine_requests import request
from tests.support.integrity import check_scheduler

NUM_BLOCKS = 1
TENANTS = ("ann", "bob", "eve")


def sequence(
    tenant: str | None, num_prompt: int, max_new_tokens: int = 1, pool: PagePool | None = None
) -> Sequence:
    each = replace(request([5] * num_prompt, max_new_tokens=max_new_tokens), tenant=tenant)
    return Sequence(each, None, table=BlockTable(pool or PagePool(10**6), NUM_BLOCKS))


def run_next(each: Scheduler) -> Batch:
    """What the engine does with a batch, without a model. Sequences end with their last token."""
    batch = each.next_batch()
    assert batch is not None
    for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
        seq.num_cached += num
        if not seq.num_uncached:
            seq.tokens.append(5)
            if seq.num_generated >= seq.request.params.max_new_tokens:
                each.remove(seq)
    check_scheduler(each)
    return batch


def served(batch: Batch) -> Counter[str | None]:
    """The tokens of each tenant."""
    found: Counter[str | None] = Counter()
    for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True):
        found[seq.request.tenant] += num
    return found


def test_a_tenant_begins_with_the_lowest_count_of_those_that_are_there() -> None:
    shares = FairShares()
    shares.serve("ann", 50)
    shares.serve("bob", 10)
    assert (shares.num_served("ann"), shares.num_served("bob")) == (50, 50 + 10)
    assert shares.num_served("eve") == 50
    shares.keep_only(["bob"])
    assert (shares.num_served("ann"), shares.num_served("bob")) == (60, 60)


def test_a_prompt_passes_the_flood_of_another_tenant() -> None:
    each = Scheduler(EngineLimits(max_num_seqs=4, max_batch_tokens=64))
    for _ in range(200):
        each.add(sequence("flood", 16, max_new_tokens=3))
    for _ in range(60):  # all of them have been passed over for long
        run_next(each)
    assert each.num_waiting > 100
    each.add(late := sequence("calm", 60, max_new_tokens=3))
    num_prefills = 0
    while not late.num_cached:
        num_prefills += not run_next(each).is_decode
    assert num_prefills <= 2


def test_within_a_tenant_the_shortest_comes_first_and_what_was_passed_over_before_it() -> None:
    each = Scheduler(EngineLimits(max_batch_tokens=64))
    each.add(long := sequence("ann", 60))
    num_prefills = 0
    while not long.num_cached:
        for tenant in ("ann", "bob"):
            each.add(sequence(tenant, 32))
        run_next(each)
        num_prefills += 1
    assert 10 < num_prefills < 20


def test_one_tenant_s_large_prompt_without_room_does_not_hold_back_another_tenant() -> None:
    pool = PagePool(8)
    each = Scheduler(EngineLimits(max_batch_tokens=64))
    each.add(sequence("ann", 4 * PAGE_TOKENS, max_new_tokens=400, pool=pool))
    for _ in range(4):
        run_next(each)
    each.add(large := sequence("ann", 7 * PAGE_TOKENS, pool=pool))
    large.num_passed = 100
    each.add(other := sequence("bob", 10, pool=pool))
    each.add(own := sequence("ann", 10, pool=pool))
    for _ in range(4):
        run_next(each)
    assert other.num_generated
    assert [seq.is_running for seq in (large, own)] == [False, False]


def test_who_was_served_most_gives_way_where_no_page_is_free() -> None:
    pool = PagePool(4)
    each = Scheduler(EngineLimits())
    each.add(flood := sequence("flood", PAGE_TOKENS - 2, max_new_tokens=200, pool=pool))
    for _ in range(20):
        run_next(each)
    each.add(late := sequence("calm", PAGE_TOKENS - 2, max_new_tokens=200, pool=pool))
    run_next(each)
    each._shares.serve("flood", 1000)
    while not flood.num_preemptions + late.num_preemptions:
        run_next(each)
    assert (flood.num_preemptions, late.num_preemptions) == (1, 0)


def present(each: Scheduler) -> set[str | None]:
    queues = (*each.waiting.values(), *each.running.values())
    return {seq.request.tenant for queue in queues for seq in queue}


arrivals = st.lists(
    st.tuples(
        st.sampled_from(TENANTS),
        st.integers(1, 15),  # prompts at once
        st.sampled_from([1, 5, 31, 64, 200, 900]),  # tokens of each
        st.integers(0, 6),  # batches since the arrival before
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20)
@given(arrivals=arrivals, max_batch_tokens=st.sampled_from([8, 64, 256]))
def test_tenants_that_wait_together_are_served_alike(
    arrivals: list[tuple[str, int, int, int]], max_batch_tokens: int
) -> None:
    """Between any two moments, tenants that have prompts to read all the while get as many tokens
    each, but for three batches: two of turns, and what prompts leave of others, which goes to any
    prompt that fits."""
    each = Scheduler(EngineLimits(max_num_seqs=10_000, max_batch_tokens=max_batch_tokens))
    most = 3 * (max_batch_tokens + each.limits.num_end_tokens)
    due = [*arrivals]
    wait = 0
    together: dict[frozenset[str], Counter[str | None]] = {}  # served while both had prompts
    while due or each.waiting or each.running:
        while due and (wait <= 0 or not (each.waiting or each.running)):
            tenant, number, length, wait = due.pop(0)
            for _ in range(number):
                each.add(sequence(tenant, length))
        wait -= 1
        batch = served(run_next(each))
        left = present(each)  # a tenant of which nothing is left got all that it asked for
        pairs = {frozenset((a, b)) for a in left for b in left if a and b and a < b}
        together = {pair: together.get(pair, Counter()) + batch for pair in pairs}
        for pair, counts in together.items():
            first, second = (counts[tenant] for tenant in pair)
            assert abs(first - second) <= most


@settings(max_examples=40)
@given(
    lengths=st.lists(st.sampled_from([1, 5, 31, 64, 200]), min_size=1, max_size=20),
    max_batch_tokens=st.sampled_from([8, 64, 256]),
)
def test_a_tenant_alone_is_served_as_without_tenants(
    lengths: list[int], max_batch_tokens: int
) -> None:
    def order(tenant: str | None) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        each = Scheduler(EngineLimits(max_batch_tokens=max_batch_tokens, max_num_seqs=4))
        for length in lengths:
            each.add(sequence(tenant, length, max_new_tokens=3))
        found = []
        while each.waiting or each.running:
            batch = run_next(each)
            serials = tuple(seq.serial for seq in batch.sequences)
            found.append((serials, batch.num_scheduled_tokens))
        return found

    assert order("ann") == order(None)


@settings(max_examples=40)
@given(
    flood=st.lists(st.sampled_from([1, 16, 64, 500]), min_size=1, max_size=60),
    calm=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    num_before=st.integers(0, 40),
)
def test_one_request_at_a_time_waits_for_two_prefills_of_others_at_most(
    flood: list[int], calm: list[int], num_before: int
) -> None:
    each = Scheduler(EngineLimits(max_num_seqs=10_000, max_batch_tokens=64))
    for length in flood:
        each.add(sequence("flood", length, max_new_tokens=5))
    for _ in range(num_before):
        if each.waiting or each.running:
            run_next(each)
    for length in calm:
        each.add(late := sequence("calm", length))
        num_prefills = 0
        while not late.num_generated:
            num_prefills += not run_next(each).is_decode
        assert num_prefills <= 2 + 1
