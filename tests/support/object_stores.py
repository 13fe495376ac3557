"""Stores of every kind, and one that counts its calls, fails or waits; registered by conftest."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from pruning.storage.location import open_store
from pruning.storage.store import ObjectStore
from pruning.store_url import StoreUrl

KINDS = ("file", "s3", pytest.param("gcs", marks=pytest.mark.slow), "hub")


@pytest.fixture(params=KINDS)
def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store."""
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        return open_store(StoreUrl.parse(f"s3://{bucket}/some/prefix"))
    if request.param == "gcs":
        bucket = request.getfixturevalue("gcs_bucket")
        return open_store(StoreUrl.parse(f"gs://{bucket}/some/prefix"))
    if request.param == "hub":
        return open_store(StoreUrl.parse(f"hf://{request.getfixturevalue('hub_repository')}"))
    return folder_store(tmp_path / "store")


def folder_store(path: Path) -> ObjectStore:
    return open_store(StoreUrl.parse(f"file://{path}"))


class ObservedStore:
    """Counts the calls of each method, and calls ``before`` ahead of each: it may raise or wait."""

    def __init__(
        self, store: ObjectStore, before: Callable[[str], object] = lambda _method: None
    ) -> None:
        self._store = store
        self._before = before
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        self.url = store.url

    def versions(self) -> Mapping[str, str]:
        self._count("versions")
        return self._store.versions()

    def manifest(self, name: str) -> bytes:
        self._count("manifest")
        return self._store.manifest(name)

    def put_manifest(self, name: str, content: bytes) -> None:
        self._count("put_manifest")
        self._store.put_manifest(name, content)

    def sizes(self, name: str) -> Mapping[str, int]:
        self._count("sizes")
        return self._store.sizes(name)

    def put(self, name: str, files: Iterable[tuple[str, Path]]) -> None:
        def counted() -> Iterator[tuple[str, Path]]:
            for digest, path in files:
                self._count("put")
                yield digest, path

        self._store.put(name, counted())

    def blocks(self, name: str, sha256: str) -> Iterator[bytes]:
        self._count("blocks")
        yield from self._store.blocks(name, sha256)

    def discard(self, name: str, digests: Collection[str]) -> None:
        self._count("discard")
        self._store.discard(name, digests)

    def delete(self, name: str) -> None:
        self._count("delete")
        self._store.delete(name)

    def _count(self, method: str) -> None:
        self.calls[method] += 1
        self.order.append(method)
        self._before(method)
