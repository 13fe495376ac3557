"""Models on the Hugging Face hub, or on a server like it: which files there are, and their bytes.

Where the hub is, and with which token, huggingface_hub decides: HF_ENDPOINT, HF_TOKEN, its login.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class HubError(RuntimeError):
    """The hub does not give what was asked for."""


def is_repo_id(text: str) -> bool:
    return _REPO_ID.fullmatch(text) is not None


class HubModel:
    """A model as it is at one commit. Raises ``HubError``, here and when files are fetched."""

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self._repo_id = repo_id
        self._revision = revision
        with self._errors_told():
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        if info.sha is None:
            raise HubError(f"{constants.ENDPOINT} names no commit of {repo_id}")
        self.commit = info.sha
        self._sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file, by its path in the repository."""
        return self._sizes

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        """Write these files, and nothing else, into ``directory``."""
        if not names:
            return
        with self._errors_told():
            snapshot_download(
                self._repo_id, revision=self.commit, local_dir=directory, allow_patterns=[*names]
            )
        shutil.rmtree(directory / ".cache", ignore_errors=True)  # its notes for another download

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise HubError(self._refusal(error)) from error
        except (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            raise HubError(
                f"{constants.ENDPOINT} cannot be reached: {error}; to add a model without it, name "
                f"a directory"
            ) from error

    def _refusal(self, error: HfHubHTTPError) -> str:
        where = f"{constants.ENDPOINT}/{self._repo_id}"
        if isinstance(error, GatedRepoError):
            return (
                f"{where} is gated: agree to its terms there, then set HF_TOKEN or log in with hf"
            )
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"there is no {where}, or it is private: check the name, or set HF_TOKEN to one "
                f"that may read it"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{where} has no revision {self._revision!r}: name a branch, tag or commit"
        status = error.response.status_code
        if status in (401, 403):
            return f"{where} is refused ({status}): set HF_TOKEN to one that may read it"
        return f"{where} answers with status {status}: try again later"
