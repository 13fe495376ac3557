"""API keys and their scopes, in a file that contains hashes of the keys.

A key is 256 random bits, so an unsalted SHA-256 is enough: unlike a password it cannot be guessed.
The file is replaced atomically and checked at every request, so that changes reach all API
processes of a data directory at once.
"""

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.json_file import JsonFile

# The name of the API key of the current request.
caller: ContextVar[str | None] = ContextVar("caller", default=None)

_FORMAT = 1
_PREFIX = "sleb_"  # for secret scanners
_NUM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """What a key permits."""

    GENERATE = "generate"
    JOBS = "jobs"
    ADMIN = "admin"  # everything, including loading and unloading


class InvalidKeyFile(ValueError):
    """The key file is malformed."""


class InvalidKeyName(ValueError):
    """The name of the key is not allowed."""


class KeyExists(ValueError):
    """A key of this name exists."""


class UnknownKey(LookupError):
    """No key has this name."""


class KeyRefused(Exception):
    """The key is missing or invalid. The message never repeats it."""

    def __init__(self, reason: str, *, is_sent: bool) -> None:
        super().__init__(f"{reason}: send one as Authorization: Bearer KEY")
        self.challenge = 'Bearer error="invalid_token"' if is_sent else "Bearer"  # RFC 6750, 3


class ScopeMissing(Exception):
    """The key lacks the scope that the path requires."""

    def __init__(self, name: str, scopes: Iterable[Scope]) -> None:
        wanted = sorted(scopes)
        super().__init__(
            f"the key {name!r} lacks the scope {' or '.join(wanted)}: "
            "`sleb keys create` makes a key that has it"
        )
        self.challenge = f'Bearer error="insufficient_scope", scope="{" ".join(wanted)}"'


@dataclass(frozen=True)
class ApiKey:
    name: str
    scopes: frozenset[Scope]
    sha256: str  # of the key, hexadecimal
    created_at: float  # seconds since the epoch
    rate_per_min: int | None = None  # requests; None is the setting, 0 is no limit
    max_concurrent: int | None = None  # generations; likewise


class KeyFile:
    """The keys of one data directory. Every method may raise ``InvalidKeyFile``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: JsonFile[tuple[ApiKey, ...]] = JsonFile(
            path, lambda text: _parsed(text, path), tuple
        )

    @property
    def exists(self) -> bool:
        """Whether a key was ever created. True if the file cannot be examined."""
        try:
            self._path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def known(self) -> tuple[ApiKey, ...]:
        """Return all keys. The file is read again only after it was replaced."""
        try:
            return self._file.read()
        except OSError as error:
            raise InvalidKeyFile(f"{self._path} cannot be read: {error.strerror}") from error

    def find(self, key: str) -> ApiKey | None:
        """Return the matching key. Compares with all of them in constant time."""
        digest = _digest(key)
        found = None
        for known in self.known():
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        rate_per_min: int | None = None,
        max_concurrent: int | None = None,
    ) -> str:
        """Return a new key, which cannot be read again. Limits are those of ``ApiKey``.

        Raises ``InvalidKeyName`` or ``KeyExists``.
        """
        if not _NAME.fullmatch(name):
            raise InvalidKeyName(
                f"{name[:128]!r}: expected up to 64 letters, digits, '.', '_' and '-', beginning "
                "with a letter or a digit"
            )
        key = _PREFIX + secrets.token_urlsafe(_NUM_BYTES)
        with self._file.changing():
            known = self.known()
            if any(each.name == name for each in known):
                raise KeyExists(f"there is a key named {name!r}: revoke it first, or take another")
            digest, now_s = _digest(key), time.time()
            limits = (rate_per_min, max_concurrent)
            self._replace([*known, ApiKey(name, frozenset(scopes), digest, now_s, *limits)])
        return key

    def revoke(self, name: str) -> None:
        """Refuse the key from the next request on. Raises ``UnknownKey``."""
        with self._file.changing():
            known = self.known()
            rest = [each for each in known if each.name != name]
            if len(rest) == len(known):
                names = ", ".join(each.name for each in known) or "none"
                raise UnknownKey(f"no key is named {name[:128]!r}; there are: {names}")
            self._replace(rest)

    def _replace(self, keys: Iterable[ApiKey]) -> None:
        rows = [{**asdict(key), "scopes": sorted(key.scopes)} for key in keys]
        self._file.replace({"format": _FORMAT, "keys": rows})


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _parsed(text: bytes, path: Path) -> tuple[ApiKey, ...]:
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']} is not {_FORMAT}")
        return tuple(_key(row) for row in data["keys"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidKeyFile(
            f"{path} is not as `sleb keys` writes it ({error}): restore it, or remove it and make "
            "new keys"
        ) from error


def _key(row: dict[str, Any]) -> ApiKey:
    key = ApiKey(
        str(row["name"]),
        frozenset(Scope(scope) for scope in row["scopes"]),
        str(row["sha256"]),
        float(row["created_at"]),
        _limit(row.get("rate_per_min")),
        _limit(row.get("max_concurrent")),
    )
    if not _NAME.fullmatch(key.name) or not _DIGEST.fullmatch(key.sha256):
        raise ValueError("a name or a hash is none")
    return key


def _limit(found: object) -> int | None:
    if found is None or (type(found) is int and found >= 0):
        return found
    raise ValueError("a limit is no number")
