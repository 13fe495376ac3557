"""No page is lost, shared by strangers, or written while it is shared."""

import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.engine.cache.block_table import BlockTable, next_key
from app.engine.cache.pages import PAGE_TOKENS, PagePool, pages_of
from tests.support.integrity import check_pool

ROOTS = (None, b"one", b"other")
LONGEST = 6 * PAGE_TOKENS


def text(seed: int, length: int) -> list[int]:
    """Token ids that begin alike for some seeds."""
    return [(seed // (1 + at // (2 * PAGE_TOKENS))) % 2 for at in range(length)]


class PoolMachine(RuleBasedStateMachine):
    """Sequences over a pool, and what each token of each unit should be."""

    @initialize(num_units=st.integers(1, 40))
    def start(self, num_units: int) -> None:
        self.pool = PagePool(num_units)
        self.open: list[tuple[BlockTable, list[int], bytes | None]] = []
        self.cached: dict[int, int] = {}  # by id of the table
        self.content: dict[int, list[tuple[bytes | None, int, tuple[int, ...]]]] = {}

    @rule(
        seed=st.integers(0, 3), length=st.integers(1, LONGEST), root=st.sampled_from(ROOTS),
        num_blocks=st.integers(1, 3), can_find=st.booleans(),
    )  # fmt: skip
    def begin(
        self, seed: int, length: int, root: bytes | None, num_blocks: int, can_find: bool
    ) -> None:
        key = None if root is None else root + bytes([num_blocks])
        table, tokens = (
            BlockTable(self.pool, num_blocks, key, can_find=can_find),
            text(seed, length),
        )
        num_found = table.count_found(tokens, 0)
        before = self.pool.num_available
        needed = table.num_needed(tokens)
        assert table.reuse(tokens, 0) == num_found < length
        assert table.num_missing(length) <= needed
        assert before - self.pool.num_available == needed - table.num_missing(length)
        for at, page in enumerate(table.pages):
            assert self.pool.has(page.key or b"")
            self.check_page(page.units, key, tokens, at)
        self.cached[id(table)] = num_found
        self.open.append((table, tokens, key))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100), num=st.integers(1, 3 * PAGE_TOKENS))
    def read(self, which: int, num: int) -> None:
        """Write further tokens of a sequence, as far as there is room."""
        table, tokens, key = self.open[which % len(self.open)]
        first = self.cached[id(table)]
        last = min(len(tokens), first + num)
        had_room = self.pool.num_available >= table.num_missing(last)
        assert table.grow(last) == had_room
        if not had_room:
            return
        for at in range(first // PAGE_TOKENS, pages_of(last)):
            page = table.pages[at]
            assert page.num_users == 1, "a shared page is written"
            assert page.key is None, "a page that others may find is written"
            written = tuple(tokens[: min(last, (at + 1) * PAGE_TOKENS)])
            self.content |= {unit: [(key, at, written)] for unit in page.units}
        table.publish(tokens, first, last)
        self.cached[id(table)] = last

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def end(self, which: int) -> None:
        table, _, _ = self.open.pop(which % len(self.open))
        table.release()
        assert not table.pages

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def fail(self, which: int) -> None:
        table, _, _ = self.open.pop(which % len(self.open))
        own, pages = table.forget(), [*table.pages]
        assert len(own) == sum(len(page.units) for page in table.pages if page.num_users == 1)
        table.release()
        assert not any(page.key for page in pages)  # another may have pages of the same tokens

    @invariant()
    def all_is_in_its_place(self) -> None:
        check_pool(self.pool, [page for table, _, _ in self.open for page in table.pages])
        assert 0 <= self.pool.num_used <= self.pool.num_units
        for table, tokens, key in self.open:
            assert table.units.tolist() == [list(page.units) for page in table.pages]
            for at in range(self.cached[id(table)] // PAGE_TOKENS):
                self.check_page(table.pages[at].units, key, tokens, at)

    def check_page(
        self, units: tuple[int, ...], key: bytes | None, tokens: list[int], at: int
    ) -> None:
        """It still has these tokens, behind all before them, of the same root."""
        expected = (key, at, tuple(tokens[: (at + 1) * PAGE_TOKENS]))
        assert all(self.content[unit] == [expected] for unit in units)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40)


def full(pool: PagePool, tokens: list[int]) -> BlockTable:
    """A sequence that has read these tokens."""
    table = BlockTable(pool, 1, b"root")
    num = table.reuse(tokens, 0)
    assert table.grow(len(tokens))
    table.publish(tokens, num, len(tokens))
    return table


def test_it_needs_no_torch() -> None:
    code = "import sys, app.engine.cache.block_table; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_that_was_used_least_recently_goes_first_and_leaves_before_what_is_before() -> (
    None
):
    pool = PagePool(4)
    first, second = [1] * (2 * PAGE_TOKENS + 1), [2] * PAGE_TOKENS
    full(pool, first).release()
    full(pool, second).release()
    looking = BlockTable(pool, 1, b"root")
    assert looking.count_found(first, 0) == 2 * PAGE_TOKENS
    assert looking.grow(2 * PAGE_TOKENS)  # one was free, the other was the second of the first text
    assert BlockTable(pool, 1, b"root").count_found(first, 0) == PAGE_TOKENS
    assert BlockTable(pool, 1, b"root").count_found([*second, 2], 0) == PAGE_TOKENS
    full(pool, first[: PAGE_TOKENS + 1]).release()  # used again
    assert looking.grow(3 * PAGE_TOKENS)
    assert BlockTable(pool, 1, b"root").count_found([*second, 2], 0) == 0


def test_the_last_token_is_always_read() -> None:
    pool, tokens = PagePool(8), [7] * (2 * PAGE_TOKENS)
    full(pool, tokens)
    assert BlockTable(pool, 1, b"root").count_found(tokens, 0) == PAGE_TOKENS
    assert BlockTable(pool, 1, b"root").count_found([*tokens, 7], 0) == 2 * PAGE_TOKENS


@pytest.mark.parametrize("root", [None, b"other"])
def test_pages_of_another_root_are_not_found(root: bytes | None) -> None:
    pool, tokens = PagePool(8), [7] * (PAGE_TOKENS + 1)
    full(pool, tokens)
    assert BlockTable(pool, 1, root).count_found(tokens, 0) == 0


def test_the_key_of_a_page_has_all_tokens_before_it() -> None:
    tokens = list(range(PAGE_TOKENS))
    key = next_key(next_key(b"root", tokens), tokens)
    assert key != next_key(next_key(b"root", tokens[::-1]), tokens)
    assert key != next_key(b"root", tokens)
    assert key == next_key(next_key(b"root", tokens), tokens)


def test_integrity_notices_what_is_lost_or_shared() -> None:
    pool = PagePool(4)
    page = pool.allocate(2)
    assert page is not None
    check_pool(pool, [page])
    for held in ([], [page, page]):
        with pytest.raises(AssertionError):
            check_pool(pool, held)
    pool._free.append(1)
    with pytest.raises(AssertionError, match="lost or shared"):
        check_pool(pool, [page])
