"""API keys and their scopes, in a file that contains hashes of the keys, and quotas of tenants: how
much of the service all keys of one tenant may use together.

A key is 256 random bits, so an unsalted SHA-256 is enough: unlike a password it cannot be guessed.
The file is replaced atomically and checked at every request, so that changes reach all API
processes of a data directory at once.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.config import ServeSettings
from app.json_file import JsonFile
from pruning.jobs.conditions import ANY_TENANT
from pruning.records import BROKEN_BY, check_time, parse_record, read_record, reason_of

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


class KeysUnchanged(ValueError):
    """A command cannot change the keys like that: the message says why."""


class KeyRefused(Exception):
    """The key is missing or invalid. The message never repeats it."""

    def __init__(self, reason: str, *, is_sent: bool) -> None:
        super().__init__(f"{reason}: send a valid key as Authorization: Bearer KEY")
        self.challenge = 'Bearer error="invalid_token"' if is_sent else "Bearer"  # RFC 6750, 3


@dataclass(frozen=True)
class Quota:
    """Limits of a tenant. None is the default, 0 is no limit."""

    queued_jobs: int | None = None  # those that wait, and those that are paused
    running_jobs: int | None = None
    checkpoint_bytes: int | None = None
    tokens_per_min: int | None = None  # of prompts and outputs

    def over(self, defaults: "Quota") -> "Quota":
        """This quota, with the defaults where it has no limit of its own."""
        return replace(defaults, **self.limits())

    def limits(self) -> dict[str, int]:
        """The limits that are not None, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}


NO_QUOTA = Quota()


def default_quota(settings: ServeSettings) -> Quota:
    """The quota of tenants without their own."""
    return Quota(
        queued_jobs=settings.tenant_queued_jobs,
        running_jobs=settings.tenant_running_jobs,
        checkpoint_bytes=settings.tenant_checkpoint_bytes,
        tokens_per_min=settings.tenant_tokens_per_min,
    )


def running_limits(quotas: Mapping[str, Quota], defaults: Quota) -> dict[str, int]:
    """Most running jobs by tenant, for ``PruneQueue.set_running_limits``."""
    named = {**quotas, ANY_TENANT: defaults}
    limits = {tenant: quota.running_jobs for tenant, quota in named.items()}
    return {tenant: limit for tenant, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class ApiKey:
    name: str
    scopes: frozenset[Scope]
    sha256: str  # of the key, hexadecimal
    created_at: float  # seconds since the epoch
    rate_per_min: int | None = None  # requests; None is the setting, 0 is no limit
    max_concurrent: int | None = None  # generations; likewise
    tenant: str | None = None  # None: its own name
    expires_at: float | None = None  # seconds since the epoch
    quota: Quota = NO_QUOTA  # of its tenant

    @property
    def owner(self) -> str:
        """The tenant that what is made with the key belongs to."""
        return self.tenant or self.name

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    def has_ended(self, now_s: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now_s


class ScopeMissing(Exception):
    """The key lacks the scope that the path requires."""

    def __init__(self, key: ApiKey, scopes: Iterable[Scope]) -> None:
        self.key = key
        wanted = sorted(scopes)
        super().__init__(
            f"the key {key.name!r} lacks the scope {' or '.join(wanted)}: create a key with "
            "this scope with `sleb keys create`"
        )
        self.challenge = f'Bearer error="insufficient_scope", scope="{" ".join(wanted)}"'


# The API key of the current request; None if it needs none.
caller: ContextVar[ApiKey | None] = ContextVar("caller", default=None)


def calling_tenant() -> str | None:
    """The tenant that the current request is for; None if it needs no key."""
    key = caller.get()
    return None if key is None else key.owner


def seen_tenant() -> str | None:
    """The tenant of the caller, who sees its jobs and checkpoints, and those without a tenant.

    None if the caller sees all of them: an admin, or anybody where no keys are needed.
    """
    key = caller.get()
    return None if key is None or key.is_admin else key.owner


@dataclass(frozen=True)
class _Content:
    keys: tuple[ApiKey, ...] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)  # by tenant

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"format": _FORMAT, "keys": [_row(key) for key in self.keys]}
        if self.quotas:
            content["quotas"] = {tenant: quota.limits() for tenant, quota in self.quotas.items()}
        return content


class KeyFile:
    """The keys of one data directory. Every method may raise ``InvalidKeyFile``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: JsonFile[_Content] = JsonFile(path, lambda text: _parsed(text, path), _Content)

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
        return self._content().keys

    def quotas(self) -> Mapping[str, Quota]:
        """The quotas of those tenants that have their own."""
        return self._content().quotas

    def find(self, key: str) -> ApiKey | None:
        """Return the matching key. Compares with all of them in constant time."""
        digest = _digest(key)
        match = None
        for known in self.known():
            if hmac.compare_digest(known.sha256, digest):
                match = known
        return match

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        rate_per_min: int | None = None,
        max_concurrent: int | None = None,
        tenant: str | None = None,
        expires_at: float | None = None,
    ) -> str:
        """Return a new key, which cannot be read again. The rest is as in ``ApiKey``.

        Raises ``KeysUnchanged`` if the name or the tenant is not allowed, or a key has the name.
        """
        for each in (name, tenant):
            if each is not None:
                _check_name(each)
        key = _new_key()
        with self._file.changing():
            known = self.known()
            if any(each.name == name for each in known):
                raise KeysUnchanged(
                    f"a key named {name!r} already exists: revoke it first, or choose another name"
                )
            digest, now_s = _digest(key), time.time()
            rest = (rate_per_min, max_concurrent, tenant, expires_at)
            self._replace([*known, ApiKey(name, frozenset(scopes), digest, now_s, *rest)])
        return key

    def rotate(self, name: str, overlap_s: float) -> str:
        """Return a new key of that name; earlier ones are accepted for ``overlap_s`` more seconds.

        The new key is as the latest one, its end date included. Raises ``KeysUnchanged`` if there
        is none, or that date has passed.
        """
        key, now_s = _new_key(), time.time()
        with self._file.changing():
            known = self.known()
            latest = next((each for each in reversed(known) if each.name == name), None)
            if latest is None:
                raise _unknown(name, known)
            if latest.has_ended(now_s):
                raise KeysUnchanged(
                    f"the key {name!r} has expired, and so would a new one: revoke it and create "
                    "another"
                )
            earlier = [_ending(each, now_s + overlap_s) for each in known if each.name == name]
            others = [each for each in known if each.name != name]
            new = replace(latest, sha256=_digest(key), created_at=now_s)
            kept = [each for each in earlier if not each.has_ended(now_s)]
            self._replace([*others, *kept, new])
        return key

    def revoke(self, name: str) -> None:
        """Refuse all keys of that name from the next request on. Raises ``KeysUnchanged``."""
        with self._file.changing():
            known = self.known()
            rest = [each for each in known if each.name != name]
            if len(rest) == len(known):
                raise _unknown(name, known)
            self._replace(rest)

    def change_quota(self, tenant: str, changes: Quota, *, is_reset: bool = False) -> Quota:
        """Set the limits that are given, and return all of the tenant's.

        ``is_reset`` first removes those that it had. Raises ``KeysUnchanged``.
        """
        _check_name(tenant)
        if not self.exists:  # the file would make all requests need a key
            raise KeysUnchanged(
                "there are no API keys, so requests have no tenant: create a key with `sleb "
                "keys create`"
            )
        with self._file.changing():
            content = self._content()
            earlier = NO_QUOTA if is_reset else content.quotas.get(tenant, NO_QUOTA)
            quota = changes.over(earlier)
            quotas = {name: each for name, each in content.quotas.items() if name != tenant}
            if quota.limits():
                quotas[tenant] = quota
            self._file.replace(replace(content, quotas=quotas).to_json())
        return quota

    def _content(self) -> _Content:
        try:
            return self._file.read()
        except OSError as error:
            raise InvalidKeyFile(f"cannot read {self._path}: {error.strerror}") from error

    def _replace(self, keys: Iterable[ApiKey]) -> None:
        self._file.replace(replace(self._content(), keys=tuple(keys)).to_json())


def _row(key: ApiKey) -> dict[str, Any]:
    row = {**asdict(key), "scopes": sorted(key.scopes)}
    del row["quota"]
    return row


def _check_name(name: str) -> None:
    """Raises ``KeysUnchanged``."""
    if not _NAME.fullmatch(name):
        raise KeysUnchanged(
            f"invalid name {name[:128]!r}: expected up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def _new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(_NUM_BYTES)


def _ending(key: ApiKey, ends_at: float) -> ApiKey:
    """The key, which ends then or as it would have before."""
    return replace(key, expires_at=min(ends_at, key.expires_at or ends_at))


def _unknown(name: str, known: Iterable[ApiKey]) -> KeysUnchanged:
    names = ", ".join(dict.fromkeys(each.name for each in known)) or "none"
    return KeysUnchanged(f"no key named {name[:128]!r}; existing keys: {names}")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _parsed(text: bytes, path: Path) -> _Content:
    try:
        data = parse_record(text)
        if (number := data.pop("format")) != _FORMAT:
            raise ValueError(f"format {number!r} is not supported, expected {_FORMAT}")
        content = read_record(_Content, data)
        _check(content)
    except BROKEN_BY as error:
        raise InvalidKeyFile(
            f"{path} is invalid ({reason_of(error)}): restore it, or remove it and create new keys"
        ) from error
    keys = (replace(key, quota=content.quotas.get(key.owner, NO_QUOTA)) for key in content.keys)
    return replace(content, keys=tuple(keys))


def _check(content: _Content) -> None:
    """Raises ``ValueError``."""
    names = [*content.quotas, *(name for key in content.keys for name in (key.name, key.owner))]
    if not all(map(_NAME.fullmatch, names)):
        raise ValueError("invalid name of a key or a tenant")
    limits = [limit for quota in content.quotas.values() for limit in quota.limits().values()]
    for key in content.keys:
        if not _DIGEST.fullmatch(key.sha256):
            raise ValueError("invalid hash")
        check_time("created_at", key.created_at)
        check_time("expires_at", key.expires_at)
        limits += [key.rate_per_min or 0, key.max_concurrent or 0]
    if min(limits, default=0) < 0:
        raise ValueError("negative limit")
