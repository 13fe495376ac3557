"""The store that a URL names. The library of its file system is imported when it is opened."""

from types import MappingProxyType
from typing import Any

import fsspec

from pruning.extras import missing_extra
from pruning.storage.files import FileSystemStore
from pruning.storage.store import ObjectStore, StoreError
from pruning.store_url import StoreUrl

_CONNECT_S, _READ_S = 5, 30
_EXTRAS = MappingProxyType({"s3": "s3", "gs": "gcs"})


class StoreExtraMissing(StoreError):
    """The library for stores of this kind is not installed."""


def open_store(url: StoreUrl) -> ObjectStore:
    """Raises ``StoreExtraMissing``. Nothing is asked of the store yet."""
    if url.scheme != "hf":
        return FileSystemStore(file_system(url), url.path, str(url))
    from pruning.storage.hub import HubStore  # noqa: PLC0415 - it takes a second

    is_dataset = url.path.startswith("datasets/")
    owner, name, *folder = url.path.removeprefix("datasets/").split("/")
    repo_type = "dataset" if is_dataset else "model"
    return HubStore(f"{owner}/{name}", repo_type, "".join(folder), str(url))


def file_system(url: StoreUrl) -> fsspec.AbstractFileSystem:
    """Of S3, Google Cloud Storage or this machine. Raises ``StoreExtraMissing``."""
    try:
        return fsspec.filesystem(url.scheme, skip_instance_cache=True, **_options(url.scheme))
    except ImportError as error:
        raise StoreExtraMissing(
            missing_extra(_EXTRAS[url.scheme], f"a store of {url.scheme}://")
        ) from error


def _options(scheme: str) -> dict[str, Any]:
    """Without listings of its own, a file system sees what others have changed."""
    if scheme == "s3":
        timeouts = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        return {
            "config_kwargs": {**timeouts, "retries": {"max_attempts": 2}},
            "use_listings_cache": False,
        }
    if scheme == "gs":
        from aiohttp import ClientTimeout  # noqa: PLC0415 - of the extra

        timeout = ClientTimeout(sock_connect=_CONNECT_S, sock_read=_READ_S)
        return {"session_kwargs": {"timeout": timeout}, "use_listings_cache": False}
    return {}
