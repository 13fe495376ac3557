"""URLs of object stores. Needs only the standard library: settings are checked by it."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

SCHEMES = ("s3", "gs", "hf", "file")
_BUCKET = re.compile(r"[\w.-]+(/[^/]+)*")
_REPOSITORY = re.compile(r"(datasets/)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[^/]+)?", re.ASCII)
_FOLDER = re.compile(r"(/[^/]+)+")
_PATHS = {"s3": _BUCKET, "gs": _BUCKET, "hf": _REPOSITORY, "file": _FOLDER}


class InvalidStoreUrl(ValueError):
    """The text is not the URL of a store."""


@dataclass(frozen=True)
class StoreUrl:
    """``SCHEME://PATH``: a bucket and a prefix, a repository of the hub, or an absolute folder."""

    scheme: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "StoreUrl":
        """Raises ``InvalidStoreUrl``. The message has no part of the text, as it may be secret."""
        try:
            parts = urlsplit(text)
        except ValueError:
            parts = urlsplit("")
        path = unquote(parts.path) if parts.scheme == "file" else parts.netloc + parts.path
        path = path.rstrip("/")
        pattern = _PATHS.get(parts.scheme)
        is_whole = not (parts.query or parts.fragment or "@" in parts.netloc)
        is_local = parts.scheme != "file" or not parts.netloc
        if not (pattern and pattern.fullmatch(path) and is_whole and is_local) or (
            {".", ".."} & set(path.split("/"))
        ):
            raise InvalidStoreUrl(
                "must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, hf://ORG/NAME or "
                "file:///FOLDER; set credentials in the environment, e.g. AWS_PROFILE or "
                "HF_TOKEN, not in the URL"
            )
        return cls(parts.scheme, path)

    @property
    def parent(self) -> "StoreUrl":
        """Raises ``InvalidStoreUrl`` if there is none."""
        return StoreUrl.parse(f"{self.scheme}://{self.path.rpartition('/')[0]}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def is_store_url(text: str) -> bool:
    """Whether the text begins like the URL of a store, valid or not."""
    return text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))
