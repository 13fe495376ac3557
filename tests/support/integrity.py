"""Checks that nothing of an engine is lost or shared, each of which raises ``AssertionError``."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from app.engine.cache.paged_cache import PagedCache
from app.engine.cache.pages import Page, PagePool
from app.engine.engine import Engine
from app.engine.scheduling.order import arrival
from app.engine.scheduling.scheduler import Scheduler


def check_engine(engine: Engine) -> None:
    """Pages, caches and sequences are consistent."""
    check_scheduler(scheduler := engine._scheduler)
    sequences = engine._sequences.values()
    num_live = scheduler.num_waiting + scheduler.num_running
    assert len(sequences) == num_live + len(scheduler._background)
    for cache in engine._caches.every():
        tables = [seq.pages for seq in sequences if seq.pages.pool is cache.pool]
        check_pool(cache.pool, [page for table in tables for page in table.pages])
        check_cache(cache)


def check_scheduler(scheduler: Scheduler) -> None:
    """No sequence and no page is lost, and no limit exceeded."""
    waiting, running = scheduler.waiting, scheduler.running
    assert scheduler.num_running <= scheduler.limits.max_num_seqs
    if (only := scheduler._admitted_background) is not None:
        active = [*waiting.values(), *running.values()]
        assert [[*seqs] for seqs in active] == [[only]], "a background sequence is not alone"
    assert sorted(map(id, scheduler._turns)) == sorted(map(id, {**waiting, **running}))
    for variant, seqs in running.items():
        assert seqs, variant.name
        assert all(seq.is_running and seq.num_uncached > 0 for seq in seqs), variant.name
        assert all(seq.num_cached <= seq.pages.num_tokens for seq in seqs), variant.name
    for variant, seqs in waiting.items():
        assert seqs == sorted(seqs, key=arrival) != [], variant.name
    for seq in (*scheduler._background, *chain.from_iterable(waiting.values())):
        assert (seq.is_running, seq.num_cached, seq.pages.pages) == (False, 0, [])


def check_pool(pool: PagePool, held: Sequence[Page]) -> None:
    """Users hold these pages alone, each as often as it is listed, and a unit is in one place."""
    users = Counter(map(id, held))
    pages = {id(page): page for page in [*held, *pool._kept.values()]}
    for name, page in pages.items():
        assert page.num_users == users[name], "a page has lost a user, or has one more"
        assert page.key is None or pool._by_key[page.key] is page
    units = [unit for page in pages.values() for unit in page.units] + pool._free
    assert sorted(units) == [*range(1, pool.num_touched + 1)], "a unit is lost or shared"
    assert pool.num_touched <= pool.num_units
    assert pool._num_kept_units == sum(len(page.units) for page in pool._kept.values())
    assert {id(page) for page in pool._by_key.values()} <= pages.keys(), "a lost page is found"


def check_cache(cache: PagedCache) -> None:
    """All numbers are finite."""
    end = 1 + cache.pool.num_touched
    for tensor in (cache.keys, cache.values):
        assert tensor[:, :end].isfinite().all()
