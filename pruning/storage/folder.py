"""A model at a URL as it is, for other programs: its files under their own names, config.json last.

So a folder without ``config.json`` is no model. On the hub all files appear with one commit.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pruning.storage.files import file_errors
from pruning.storage.location import file_system
from pruning.storage.store import StoreError
from pruning.store_url import StoreUrl

_CONFIG = "config.json"
_REPOSITORY = re.compile("(?!datasets/)[^/]+/[^/]+")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


class FolderTaken(FileExistsError):
    """There is a model at the URL already."""


class FileOutside(StoreError):
    """The name of a file leads out of its folder."""


class NotAModelRepository(StoreError):
    """The URL is one of the hub, but not that of a repository of a model."""


class StoredFolder:
    """The files of a folder of S3, Google Cloud Storage or this machine.

    Methods raise ``StoreError``. Who may write there chooses the names of the files: those that
    read raise ``FileOutside`` for one that would be written elsewhere.
    """

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._system = file_system(url)

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size in bytes of every file, by its path in the folder."""
        with file_errors(self._url, "list"):
            try:
                entries: Mapping[str, Any] = self._system.find(self._url.path, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._system._strip_protocol(self._url.path)) + 1
        return {
            self._inside(path[start:]): int(entry["size"])
            for path, entry in entries.items()
            if entry["type"] == "file" and path[start:] and not path.endswith("/")
        }

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        """Write these files into ``directory``."""
        with file_errors(self._url, "read"):
            for name in map(self._inside, names):
                self._system.get_file(f"{self._url.path}/{name}", str(directory / name))

    def check(self, *, overwrite: bool) -> None:
        """Raises ``FolderTaken`` if ``send`` would."""
        if not overwrite and self.sizes:
            raise FolderTaken(f"{self._url} is not empty: choose another URL, or use --overwrite")

    def send(self, directory: Path, *, overwrite: bool) -> None:
        """Write all files of ``directory``. Raises ``FolderTaken`` unless ``overwrite`` is set.

        Of what was there, files of the same names are replaced, and weights of others deleted.
        """
        self.check(overwrite=overwrite)
        there, files = self.sizes, _files(directory)
        ordered = sorted(files, key=lambda file: (file == _CONFIG, file))
        with file_errors(self._url, "write"):
            if _CONFIG in there:
                self._system.rm_file(f"{self._url.path}/{_CONFIG}")
            for file in ordered:
                target = f"{self._url.path}/{file}"
                self._system.makedirs(posixpath.dirname(target), exist_ok=True)
                self._system.put_file(str(directory / file), target)
            for file in (name for name in there if name not in files and _is_weights(name)):
                self._system.rm_file(f"{self._url.path}/{file}")

    def _inside(self, name: str) -> str:
        if {"", ".", ".."} & set(name.split("/")):
            raise FileOutside(
                f"{self._url} contains a file {name[:128]!r} with a path outside of its folder: "
                "delete the file, and do not trust the others"
            )
        return name


def send_to_hub(url: StoreUrl, directory: Path) -> None:
    """Commit all files of ``directory`` to the repository, which is created as a private one.

    ``HfApi.upload_folder`` would make several commits, with a model between them that is none.
    """
    from huggingface_hub import (  # noqa: PLC0415 - it takes a second
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
    )

    from pruning.storage.hub import hub_errors  # noqa: PLC0415 - as above

    api = HfApi(library_name="sleb-serve")
    with hub_errors(str(url), "write the model"):
        api.create_repo(url.path, private=True, exist_ok=True)
        files = _files(directory)
        there = (entry.path for entry in api.list_repo_tree(url.path))
        api.create_commit(
            url.path,
            [
                *(
                    CommitOperationDelete(name)
                    for name in there
                    if _is_weights(name) and name not in files
                ),
                *(CommitOperationAdd(name, str(directory / name)) for name in files),
            ],
            commit_message="Export a model",
        )


def send_folder(url: StoreUrl, directory: Path, *, overwrite: bool) -> None:
    """Write a model to the URL. Raises ``FolderTaken``, ``StoreUnavailable`` or ``StoreDenied``."""
    if url.scheme == "hf":
        send_to_hub(url, directory)
    else:
        StoredFolder(url).send(directory, overwrite=overwrite)


def check_folder(url: StoreUrl, *, overwrite: bool) -> None:
    """Raises what ``send_folder`` would at its beginning. The hub takes another commit."""
    if url.scheme != "hf":
        StoredFolder(url).check(overwrite=overwrite)
    elif not _REPOSITORY.fullmatch(url.path):
        raise NotAModelRepository(f"{url} is not a model repository: expected hf://ORG/NAME")


def _files(directory: Path) -> list[str]:
    paths = sorted(directory.rglob("*"))
    return [str(path.relative_to(directory)) for path in paths if path.is_file()]


def _is_weights(name: str) -> bool:
    """Of the folder itself: transformers reads no others."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)
