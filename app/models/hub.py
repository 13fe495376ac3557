"""Models of the Hugging Face hub.

huggingface_hub decides where the hub is and which token it gets: HF_ENDPOINT, HF_TOKEN, its login.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
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
    """The hub cannot be reached or refuses the request."""


def is_repo_id(text: str) -> bool:
    """Whether the text is the ``ORG/NAME`` of a model on the hub, and no path."""
    return _REPO_ID.fullmatch(text) is not None


class HubModel:
    """The files of a hub repository at one commit.

    The constructor and ``fetch`` raise ``HubError``.
    """

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self._repo_id = repo_id
        self._revision = revision
        with self._hub_errors():
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        if info.sha is None:
            raise HubError(f"{constants.ENDPOINT} returned no commit for {repo_id}")
        self.commit = info.sha
        self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        if not names:
            return  # huggingface_hub would fetch everything
        with self._hub_errors():
            snapshot_download(
                self._repo_id, revision=self.commit, local_dir=directory, allow_patterns=[*names]
            )
        shutil.rmtree(directory / ".cache", ignore_errors=True)  # written by huggingface_hub

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        """Raise errors of huggingface_hub as ``HubError``."""
        try:
            yield
        except HfHubHTTPError as error:
            raise HubError(self._refusal(error)) from error
        except (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            raise HubError(
                f"cannot reach {constants.ENDPOINT}: {error}; to add a model without the hub, "
                "give a directory"
            ) from error

    def _refusal(self, error: HfHubHTTPError) -> str:
        url = f"{constants.ENDPOINT}/{self._repo_id}"
        if isinstance(error, GatedRepoError):
            return f"{url} is gated: accept its terms there, then set HF_TOKEN or log in with hf"
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{url} not found, or private: check the name, or set HF_TOKEN to a token with "
                "read access"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{url} has no revision {self._revision!r}: expected a branch, tag or commit"
        status = error.response.status_code
        if status in (401, 403):
            return f"access to {url} denied ({status}): set HF_TOKEN to a token with read access"
        return f"{url} returned status {status}: try again later"
