"""The port of object stores: manifests by name, and objects by the digests of their contents."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pruning.records import MAX_BYTES


class StoreError(RuntimeError):
    """A request to the object store failed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or answers with an error. A later attempt may succeed."""


class StoreDenied(StoreError):
    """The store refuses the request of these credentials."""


class ObjectMissing(StoreError):
    """The store has no such manifest or object."""


class ObjectCorrupt(StoreError):
    """The content of an object is not what its name says."""


class ObjectTooLarge(StoreError):
    """A manifest in the store has more bytes than one can have."""


def whole(url: str, name: str, parts: Iterable[bytes]) -> bytes:
    """The manifest of a checkpoint from its parts. Raises ``ObjectTooLarge``."""
    content = b""
    for part in parts:
        content += part
        if len(content) > MAX_BYTES:
            raise ObjectTooLarge(
                f"{url}: the manifest of {name} has more than {MAX_BYTES} bytes: delete it"
            )
    return content


class ObjectStore(Protocol):
    """Checkpoints in a store. Every method may raise ``StoreUnavailable`` or ``StoreDenied``."""

    @property
    def url(self) -> str:
        """Where it is, without credentials."""

    def versions(self) -> Mapping[str, str]:
        """The names of all complete checkpoints, and what changes with the manifest of each."""

    def manifest(self, name: str) -> bytes:
        """Raises ``ObjectMissing`` or ``ObjectTooLarge``."""

    def put_manifest(self, name: str, content: bytes) -> None:
        """Make the checkpoint visible. All of its objects must be there."""

    def sizes(self, name: str) -> Mapping[str, int]:
        """The sizes in bytes of the complete objects of this checkpoint, by digest."""

    def put(self, name: str, files: Iterable[tuple[str, Path]]) -> None:
        """Write each file as the object of its digest. Objects appear as a whole.

        Takes the next file when it is ready for it, and raises what that raises.
        """

    def blocks(self, name: str, sha256: str) -> Iterator[bytes]:
        """Read an object in parts. Raises ``ObjectMissing``, also between two parts."""

    def discard(self, name: str, digests: Collection[str]) -> None:
        """Delete these objects of this checkpoint, which its manifest does not name."""

    def delete(self, name: str) -> None:
        """Delete the manifest, then the objects. It is no error if there are none."""
