"""A store on a file system of fsspec: S3, Google Cloud Storage, or a folder."""

import os
import posixpath
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fsspec import AbstractFileSystem

from pruning.checkpoints.staging import make_directory, sync_directory
from pruning.records import open_stored
from pruning.storage.store import (
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    whole,
)

BLOCK_BYTES = 16 * 2**20
_SUFFIX = ".json"
_PART = ".part-"  # in the names of files that a folder does not have as a whole yet


class FileSystemStore:
    """A store below ``root``, a path of the file system ``system``.

    Object stores show an object once it is complete. In a folder, a file is written beside its
    place and renamed.
    """

    def __init__(self, system: AbstractFileSystem, root: str, url: str) -> None:
        self.url = url
        self._system = system
        self._root = root.rstrip("/")
        self._is_folder = "file" in system.protocol

    def versions(self) -> Mapping[str, str]:
        with file_errors(self.url, "list"):
            entries = self._list(self._path("manifests"))
        return {
            name.removesuffix(_SUFFIX): _version(entry)
            for name, entry in entries.items()
            if name.endswith(_SUFFIX)
        }

    def manifest(self, name: str) -> bytes:
        parts = self._parts(self._manifest(name), f"read the manifest of {name}")
        return whole(self.url, name, parts)

    def put_manifest(self, name: str, content: bytes) -> None:
        with file_errors(self.url, f"write the manifest of {name}"):
            if self._is_folder:
                self._write_in_folder(self._manifest(name), content)
            else:
                self._system.pipe_file(self._manifest(name), content)

    def sizes(self, name: str) -> Mapping[str, int]:
        with file_errors(self.url, f"list the objects of {name}"):
            entries = self._list(self._path("objects", name))
        return {
            digest: int(entry["size"]) for digest, entry in entries.items() if _PART not in digest
        }

    def put(self, name: str, files: Iterable[tuple[str, Path]]) -> None:
        for digest, file in files:
            with file_errors(self.url, f"write an object of {name}"):
                if self._is_folder:
                    self._write_in_folder(self._path("objects", name, digest), file)
                else:
                    self._system.put_file(str(file), self._path("objects", name, digest))

    def blocks(self, name: str, sha256: str) -> Iterator[bytes]:
        return self._parts(self._path("objects", name, sha256), f"read an object of {name}")

    def discard(self, name: str, digests: Collection[str]) -> None:
        for digest in digests:
            with file_errors(self.url, f"delete an object of {name}"), suppress(FileNotFoundError):
                self._system.rm_file(self._path("objects", name, digest))

    def delete(self, name: str) -> None:
        with file_errors(self.url, f"delete {name}"):
            with suppress(FileNotFoundError):
                self._system.rm_file(self._manifest(name))
            with suppress(FileNotFoundError):
                self._system.rm(self._path("objects", name), recursive=True)

    def _parts(self, path: str, verb: str) -> Iterator[bytes]:
        with file_errors(self.url, verb):
            opened = self._opened(path)
        with opened:
            while True:
                with file_errors(self.url, verb):
                    block = opened.read(BLOCK_BYTES)
                if not block:
                    return
                yield block

    def _opened(self, path: str) -> Any:  # noqa: ANN401 - of each file system
        """For reading. In a folder, a link leads to a file that is not of the store."""
        if self._is_folder:
            return open_stored(Path(path), is_link_allowed=False)
        return self._system.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead")

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._root, *parts)

    def _manifest(self, name: str) -> str:
        return self._path("manifests", f"{name}{_SUFFIX}")

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        """The files of a folder by name. A folder that is not there has none."""
        try:
            entries = self._system.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {
            posixpath.basename(entry["name"]): entry for entry in entries if entry["type"] == "file"
        }

    def _write_in_folder(self, target: str, content: Path | bytes) -> None:
        """Write durably, and rename: a process that dies leaves nothing of that name."""
        path = Path(target)
        make_directory(path.parent)
        part = path.with_name(f"{path.name}{_PART}{uuid4().hex}")
        try:
            with part.open("xb") as to:
                if isinstance(content, bytes):
                    to.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, to, BLOCK_BYTES)
                to.flush()
                os.fsync(to.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        sync_directory(path.parent)


@contextmanager
def file_errors(url: object, verb: str) -> Iterator[None]:
    """Raise what goes wrong in the file system of this URL as errors of the port."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise ObjectMissing(f"{url} not found: cannot {verb}") from error
    except Exception as error:  # each file system has errors of its own
        reason = str(error) or type(error).__name__
        if _is_denied(error):
            raise StoreDenied(
                f"{url}: permission denied, cannot {verb} ({reason}): check the credentials and "
                "their permissions"
            ) from error
        raise StoreUnavailable(f"{url}: cannot {verb} now: {reason}") from error


def _is_denied(error: Exception) -> bool:
    """Whether it is a refusal; gcsfs raises other errors than ``PermissionError`` for one."""
    is_of_gcs = getattr(error, "code", None) == 401 or str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or is_of_gcs


def _version(entry: Mapping[str, Any]) -> str:
    """What changes when the file is replaced, whichever of these the file system tells."""
    known = ("ETag", "etag", "mtime", "ino", "LastModified", "size")
    return " ".join(str(entry[key]) for key in known if key in entry)
