"""A store in a repository of the Hugging Face hub, which huggingface_hub finds and logs in to.

Each upload is two commits: the objects, then the manifest. Large files are sent before their
commit, and the hub keeps them if that is not made, so a later upload does not send them again. A
deletion is one commit. The history of the repository still has what it deletes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils.tqdm import disable_progress_bars

from pruning.storage.store import (
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    whole,
)

_BLOCK_BYTES = 2**20
_TIMEOUT_S = 30.0
_SUFFIX = ".json"


class HubStore:
    """A store in the repository ``repo_id``, which the first upload creates as a private one."""

    def __init__(self, repo_id: str, repo_type: str, folder: str, url: str) -> None:
        self.url = url
        self._repo_id = repo_id
        self._repo_type = repo_type  # "model" or "dataset"
        self._folder = f"{folder}/" if folder else ""

    @cached_property
    def _api(self) -> HfApi:
        disable_progress_bars()  # uploads are in the background of a worker
        return HfApi(library_name="sleb-serve")

    def versions(self) -> Mapping[str, str]:
        with hub_errors(self.url, "list"):
            files = self._list("manifests")
        return {
            name.removesuffix(_SUFFIX): file.blob_id
            for name, file in files.items()
            if name.endswith(_SUFFIX)
        }

    def manifest(self, name: str) -> bytes:
        parts = self._read(f"manifests/{name}{_SUFFIX}", f"read the manifest of {name}")
        return whole(self.url, name, parts)

    def put_manifest(self, name: str, content: bytes) -> None:
        path = f"{self._folder}manifests/{name}{_SUFFIX}"
        self._commit([CommitOperationAdd(path, content)], f"Publish {name}")

    def sizes(self, name: str) -> Mapping[str, int]:
        with hub_errors(self.url, f"list the objects of {name}"):
            try:
                files = self._list(f"objects/{name}")
            except RepositoryNotFoundError:  # not created yet
                return {}
        return {digest: file.size for digest, file in files.items()}

    def put(self, name: str, files: Iterable[tuple[str, Path]]) -> None:
        added = [
            CommitOperationAdd(f"{self._folder}objects/{name}/{digest}", str(path))
            for digest, path in files
        ]
        with hub_errors(self.url, "create the repository"):
            self._api.create_repo(
                self._repo_id, repo_type=self._repo_type, private=True, exist_ok=True
            )
        self._commit(added, f"Upload files of {name}")

    def blocks(self, name: str, sha256: str) -> Iterator[bytes]:
        return self._read(f"objects/{name}/{sha256}", f"read an object of {name}")

    def discard(self, name: str, digests: Collection[str]) -> None:
        paths = (f"{self._folder}objects/{name}/{digest}" for digest in sorted(digests))
        self._commit([CommitOperationDelete(path) for path in paths], f"Delete files of {name}")

    def delete(self, name: str) -> None:
        is_visible, has_objects = name in self.versions(), bool(self.sizes(name))
        gone = [f"manifests/{name}{_SUFFIX}"] if is_visible else []
        gone += [f"objects/{name}/"] if has_objects else []
        if gone:
            deleted = [CommitOperationDelete(f"{self._folder}{path}") for path in gone]
            self._commit(deleted, f"Delete {name}")

    def _list(self, folder: str) -> dict[str, RepoFile]:
        """The files of a folder by name. A folder that is not there has none."""
        try:
            entries = list(
                self._api.list_repo_tree(
                    self._repo_id, f"{self._folder}{folder}", repo_type=self._repo_type
                )
            )
        except EntryNotFoundError:
            return {}
        return {
            entry.path.rpartition("/")[2]: entry for entry in entries if isinstance(entry, RepoFile)
        }

    def _read(self, path: str, verb: str) -> Iterator[bytes]:
        url = hf_hub_url(self._repo_id, f"{self._folder}{path}", repo_type=self._repo_type)
        with (
            hub_errors(self.url, verb),
            get_session().stream(
                "GET", url, headers=build_hf_headers(), timeout=_TIMEOUT_S, follow_redirects=True
            ) as response,
        ):
            if response.is_error:
                response.read()  # for the message of the error
            hf_raise_for_status(response)
            yield from response.iter_bytes(_BLOCK_BYTES)

    def _commit(
        self, operations: list[CommitOperationAdd] | list[CommitOperationDelete], message: str
    ) -> None:
        with hub_errors(self.url, message[:1].lower() + message[1:]):
            self._api.create_commit(
                self._repo_id, operations, commit_message=message, repo_type=self._repo_type
            )


@contextmanager
def hub_errors(url: str, verb: str) -> Iterator[None]:
    """Raise errors of huggingface_hub as errors of the port."""
    try:
        yield
    except StoreError:
        raise
    except RepositoryNotFoundError as error:
        raise StoreDenied(
            f"cannot {verb}: {url} does not exist, or the token has no permission; set "
            "HF_TOKEN to a token with permission (the first upload creates the repository)"
        ) from error
    except EntryNotFoundError as error:
        raise ObjectMissing(f"{url} not found: cannot {verb}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StoreDenied(
                f"{url}: permission denied, cannot {verb} ({status}): set HF_TOKEN to a token "
                "with permission"
            ) from error
        raise StoreUnavailable(f"{url}: cannot {verb} now: status {status}") from error
    except Exception as error:  # of httpx2, of Xet, or an answer that makes no sense
        reason = str(error) or type(error).__name__
        if "xet-write-token" in reason:
            reason += "; if this hub does not support Xet, set HF_HUB_DISABLE_XET=1"
        raise StoreUnavailable(f"{url}: cannot {verb} now: {reason}") from error
