import gc
import sys
import weakref

import psutil
import pytest
import torch

from app.engine.cache import paged_cache
from app.engine.cache.caches import Caches, CacheTooSmall
from app.engine.cache.paged_cache import (
    AttentionMetadata,
    PagedCache,
    UnitShape,
    tables_of,
    unit_shape,
)
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.variant import make_variant
from tests.support.engine_requests import PRUNED_BLOCKS, cache_bytes, variant
from tests.support.integrity import check_cache
from tests.support.tiny import SERVED, tiny_model

HEADS, DIM, BLOCKS = 2, 4, 3
CPU = torch.device("cpu")
SHAPE = UnitShape(HEADS, DIM, torch.float32, CPU)
# Two sequences, the first one with two pages.
UNITS = [torch.tensor([[1, 2, 3], [9, 8, 7]]), torch.tensor([[4, 5, 6]])]


def opened(
    owners: list[int], positions: list[int], num_read: tuple[int, ...] | None, num_pages: int = 2
) -> PagedCache:
    cache = PagedCache(SHAPE, 12)
    reopen(cache, owners, positions, num_read, num_pages)
    return cache


def reopen(
    cache: PagedCache,
    owners: list[int],
    positions: list[int],
    num_read: tuple[int, ...] | None,
    num_pages: int = 2,
) -> None:
    tables = tables_of(UNITS, num_pages)
    both = torch.tensor([owners, positions])
    cache.metadata = AttentionMetadata(tables, both[0], both[1], num_read, max(positions) + 1)


def tokens(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, HEADS, DIM)


def test_prompts_are_read_page_by_page_of_one_sequence_after_the_other() -> None:
    far = PAGE_TOKENS + 1
    cache = opened([0, 0, 1], [0, far, 2], (far + 1, 3))
    keys, values = cache.write(tokens(1, 2, 3), tokens(-1, -2, -3), 1)
    assert keys.shape == (1, HEADS, 3 * PAGE_TOKENS, DIM)
    assert keys[0, 1, :, 0].nonzero().flatten().tolist() == [0, far, 2 * PAGE_TOKENS + 2]
    assert torch.equal(values, -keys)
    assert cache.keys[0, :, :, 0].nonzero().tolist() == [[2, 0], [5, 2], [8, 1]]


def test_a_decode_reads_a_row_for_each_sequence() -> None:
    cache = opened([0, 0, 1], [0, PAGE_TOKENS, 0], (PAGE_TOKENS + 1, 1))
    cache.write(tokens(1, 2, 3), tokens(1, 2, 3), 2)
    reopen(cache, [0, 1], [PAGE_TOKENS + 1, 1], None)
    keys, _ = cache.write(tokens(4, 5), tokens(4, 5), 2)
    assert keys.shape == (2, HEADS, 2 * PAGE_TOKENS, DIM)
    first, second = keys[:, 0, :, 0]
    assert first[[0, PAGE_TOKENS, PAGE_TOKENS + 1]].tolist() == [1, 2, 4]
    assert second[:2].tolist() == [3, 5]
    assert not second[PAGE_TOKENS:].any(), "padding is not that of no page"


def test_blocks_do_not_share_units() -> None:
    cache = opened([1], [0], (0, 1))
    for block in range(BLOCKS):
        cache.write(tokens(block + 1.0), tokens(block + 1.0), block)
    assert cache.keys[0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, *[0] * 6]


def test_what_a_model_writes_is_laid_out_as_it_is_read() -> None:
    cache = opened([1, 1], [0, 1], (0, 2))
    states = torch.arange(2.0 * HEADS * DIM).view(1, HEADS, 2, DIM)
    keys, _ = cache.update(states, states, 0)
    assert torch.equal(keys[:, :, :2], states)


def test_some_of_the_tokens_are_written_where_all_of_them_would_be() -> None:
    cache = opened([0, 1, 1], [3, 4, 5], (4, 6))
    cache.metadata = cache.metadata.of(slice(1, 2))
    cache.write(tokens(5), tokens(5), 0)
    assert cache.keys[0, :, :, 0].nonzero().tolist() == [[4, 4]]


def test_what_would_spread_is_noticed_until_it_is_cleared() -> None:
    cache = opened([0], [0], (1, 0))
    page = cache.pool.allocate(3)
    assert page is not None
    cache.write(tokens(float("nan")), tokens(1), 0)
    with pytest.raises(AssertionError):
        check_cache(cache)
    cache.clear(page.units)
    check_cache(cache)


@pytest.mark.parametrize("family", SERVED)
def test_the_shape_of_every_family_is_that_of_what_it_writes(family: str) -> None:
    model = tiny_model(family)
    shape = unit_shape(model)
    output = model(torch.tensor([[3, 4, 5]]), use_cache=True)
    keys = output.past_key_values.layers[0].keys
    assert (1, shape.num_key_heads, 3, shape.head_dim) == keys.shape
    assert shape.dtype == keys.dtype


def test_variants_of_one_shape_share_a_cache_as_long_as_one_of_them_lives() -> None:
    caches = Caches(cache_bytes(200))
    assert caches.of(variant()) is caches.of(variant(pruned=True))
    assert caches.of(variant()).num_bytes <= cache_bytes(200)
    own = make_variant("gpt2", "gpt2", tiny_model("gpt2"))
    other = weakref.ref(caches.of(own))
    assert other() is not caches.of(variant())
    assert len(caches.every()) == 2
    del own
    gc.collect()
    assert other() is None
    assert len(caches.every()) == 1


def test_a_cache_without_room_for_a_page_is_refused() -> None:
    pruned = make_variant("tiny@-2", "tiny", tiny_model("llama"), PRUNED_BLOCKS)
    assert Caches(cache_bytes(1, pruned)).of(pruned).pool.num_units == len(PRUNED_BLOCKS)
    with pytest.raises(CacheTooSmall, match="SLEB_KV_CACHE_BYTES"):
        Caches(cache_bytes(1, pruned) - 1).of(pruned)


def test_by_default_a_cache_takes_memory_only_as_it_is_used() -> None:
    caches = Caches(None)
    assert caches.of(variant()).num_bytes > 2**26


@pytest.mark.skipif(sys.platform != "linux", reason="pages of memory are counted as Linux does")
def test_memory_is_taken_ahead_of_the_pages_in_use_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as in use, and not as for all other tests: 2 MB would be as much as one large piece
    monkeypatch.setattr(paged_cache, "_AHEAD_BYTES", 2**26)
    shape = UnitShape(8, 64, torch.float32, CPU)
    cache, process = PagedCache(shape, 2**28 // shape.num_bytes), psutil.Process()

    def taken() -> int:
        before = process.memory_info().rss
        while cache.take_ahead():
            pass
        return int(process.memory_info().rss - before)

    first = taken()
    assert 0.7 * 2**26 < first < 2**27  # the system gives it in large pieces
    assert not cache.take_ahead()
    page = cache.pool.allocate(2**25 // shape.num_bytes)
    assert page is not None
    cache.keys[:, list(page.units)] = 1
    taken()
    assert cache.keys[:, list(page.units)].eq(1).all(), "what is in use stays"
    assert cache.pool.allocate(cache.pool.num_available) is not None
    assert not cache.take_ahead()


def test_a_small_pool_is_taken_as_a_whole() -> None:
    cache = PagedCache(SHAPE, 12)
    assert cache.take_ahead()
    assert not cache.take_ahead()
