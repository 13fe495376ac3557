"""The cache of a store's files: bounded, never without what is in use, fetched by one at a time."""

import errno
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pruning.checkpoints.store import FileEntry
from pruning.storage.cache import CheckpointCache, NoRoomInCache, Wanted
from tests.support.checkpoints import manifest_of
from tests.support.crashes import dies

# From 3.12 on, Python warns of forks beside threads: the children here write files, and no more.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

FILES = {"model.safetensors": b"w" * 700, "repair/depth-1.safetensors": b"r" * 300}


def wanted(name: str, files: Collection[str] = tuple(FILES)) -> Wanted:
    entries = {
        file: FileEntry(len(content), hashlib.sha256(content).hexdigest())
        for file, content in FILES.items()
    }
    manifest = replace(manifest_of(name), files=entries)
    return Wanted(f"key-{name}", manifest, manifest.to_json().encode(), files)


class Origin:
    """Where files are fetched from. Notes each of them."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.fetched: list[str] = []
        self._before = before

    def fetch(self, entry: FileEntry, target: Path) -> None:
        self._before()
        self.fetched.append(target.name)
        content = next(c for c in FILES.values() if len(c) == entry.num_bytes)
        target.with_name(f"{target.name}.part").write_bytes(content)
        target.with_name(f"{target.name}.part").replace(target)


def fetch(cache: CheckpointCache, name: str, origin: Origin | None = None) -> None:
    with cache.hold(wanted(name), (origin or Origin()).fetch):
        pass


def folders(cache: CheckpointCache) -> set[str]:
    return {path.name for path in cache.root.glob("[!.]*/")}


def test_files_are_fetched_once_and_only_those_that_are_wanted(tmp_path: Path) -> None:
    cache, origin = CheckpointCache(tmp_path, 1000), Origin()
    with cache.hold(wanted("a", ["repair/depth-1.safetensors"]), origin.fetch) as path:
        assert (path / "repair/depth-1.safetensors").read_bytes() == b"r" * 300
    assert not cache.has(wanted("a"))
    for _ in range(2):
        with cache.hold(wanted("a"), origin.fetch) as path:
            assert (path / "model.safetensors").read_bytes() == b"w" * 700
    assert origin.fetched == ["depth-1.safetensors", "model.safetensors"]
    assert cache.used_bytes() == 1000


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache, origin = CheckpointCache(tmp_path, 2500), Origin()
    for at, name in enumerate(["a", "b", "a"]):
        fetch(cache, name, origin)
        os.utime(tmp_path / f"key-{name}.lock", (at, at))
    fetch(cache, "c", origin)
    assert folders(cache) == {"key-a", "key-c"}
    assert cache.used_bytes() <= 2500


def test_what_is_in_use_stays_and_the_bound_holds(tmp_path: Path) -> None:
    cache, origin = CheckpointCache(tmp_path, 2500), Origin()
    reason = r"another 1000 bytes .* 2000 of 2500 bytes are in use"
    with cache.hold(wanted("a"), origin.fetch) as first:
        with cache.hold(wanted("b"), origin.fetch) as second:
            with pytest.raises(NoRoomInCache, match=reason):
                fetch(cache, "c", origin)
            assert folders(cache) - {"key-c"} == {"key-a", "key-b"}
        with cache.hold(wanted("c"), origin.fetch) as third:
            assert (first / "model.safetensors").exists()
            assert (third / "model.safetensors").exists()
            assert not second.exists()
        assert not CheckpointCache(tmp_path, 1).drop("key-a")
    assert cache.drop("key-a")


def _hold(root: Path, is_held: Event, is_over: Event) -> None:
    with CheckpointCache(root, 1000).hold(wanted("a"), Origin().fetch):
        is_held.set()
        is_over.wait(100)


def test_what_another_process_uses_stays_until_that_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    is_held, is_over = context.Event(), context.Event()
    user = context.Process(target=_hold, args=(tmp_path, is_held, is_over))
    user.start()
    assert is_held.wait(100)
    cache = CheckpointCache(tmp_path, 1000)
    with pytest.raises(NoRoomInCache):
        fetch(cache, "b")
    user.kill()
    user.join()
    fetch(cache, "b")
    assert folders(cache) == {"key-b"}


def test_concurrent_users_of_a_checkpoint_fetch_it_once(tmp_path: Path) -> None:
    others_wait = threading.Barrier(2)
    slow = Origin(lambda: others_wait.wait(100) if not slow.fetched else None)
    users = [
        threading.Thread(target=fetch, args=(CheckpointCache(tmp_path, 1000), "a", slow))
        for _ in range(4)
    ]
    for user in users:
        user.start()
    others_wait.wait(100)
    for user in users:
        user.join()
    assert sorted(slow.fetched) == ["depth-1.safetensors", "model.safetensors"]


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_a_cache_that_works(tmp_path: Path) -> None:
    for step in itertools.count(1):
        root = tmp_path / str(step)

        def fill(root: Path = root) -> None:
            cache = CheckpointCache(root, 1000)
            for name in ("a", "b"):  # the second one removes the first one
                fetch(cache, name)

        is_dead = dies(fill, step)
        cache = CheckpointCache(root, 1000)
        for name in ("b", "c"):
            with cache.hold(wanted(name), Origin().fetch) as path:
                assert (path / "model.safetensors").read_bytes() == b"w" * 700
            assert cache.used_bytes() <= 1000
        assert folders(cache) == {"key-c"}
        if not is_dead:
            assert step > 20
            break


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_keeps_what_is_complete(tmp_path: Path, number: int) -> None:
    cache = CheckpointCache(tmp_path, 5000)
    with cache.hold(wanted("a"), Origin().fetch) as used:
        calls = itertools.count()

        def full() -> None:
            if next(calls):
                raise OSError(number, "full")

        with pytest.raises(NoRoomInCache, match=r"the disk of .* is full"):
            fetch(cache, "b", Origin(full))
        assert (used / "model.safetensors").exists()
    rest = Origin()
    fetch(cache, "b", rest)
    assert rest.fetched == ["depth-1.safetensors"]
