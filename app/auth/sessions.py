"""Sessions of browsers: a key is exchanged for a cookie, as pages and their streams send no header.

A session is signed, not stored: the name of the key, when it began and ends, and a signature by a
secret of the data directory over these, the hash of the key and its generation. So it is good for
all API processes of the directory, and ends at once when its key is revoked. Signing out counts up
the generation, which ends all sessions of the key.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from app.auth.keys import ApiKey, KeyFile
from app.json_file import JsonFile
from pruning.records import MAX_INTEGER, InvalidRecord, parse_record, read_stored, replace_file

logger = logging.getLogger(__name__)

GENERATIONS = "sessions.json"  # beside the secret
COOKIE = "sleb_session"
LIFETIME_S = 3600  # without a request
MAX_LIFETIME_S = 12 * 3600  # from the sign-in, whatever is requested
_NUM_BYTES = 32
_MAX_CHARS = 256  # of a cookie; one has about 120


class NotSameOrigin(Exception):
    """A page of another origin asks for a change with the cookie of a session."""

    def __init__(self) -> None:
        super().__init__(
            "a request with a session cookie must come from this service's own pages, but "
            "the Origin header is missing or does not match Host: send an API key instead"
        )


class SessionsNotKept(Exception):
    """The files of sessions cannot be read or written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"session files cannot be read or written ({error.strerror}): free space, "
            "correct the data directory, or send the API key with each request"
        )


@dataclass(frozen=True)
class Session:
    """Times are seconds since the epoch."""

    key: ApiKey
    began_at: int
    ends_at: int


class Sessions:
    """Signs and reads the cookies of sessions. ``secret_file`` is made by the first sign-in."""

    def __init__(
        self, keys: KeyFile, secret_file: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._secret_file = secret_file
        self._generations: JsonFile[Mapping[str, int] | None] = JsonFile(
            secret_file.with_name(GENERATIONS), _generations, dict
        )
        self._clock = clock

    def begin(self, key: ApiKey) -> Session:
        """A new session of a key."""
        now = int(self._clock())
        return Session(key, now, now + LIFETIME_S)

    def cookie(self, session: Session) -> str:
        """The value of the cookie. Raises ``SessionsNotKept``."""
        content = f"{session.key.name}:{session.began_at}:{session.ends_at}"
        with _files_reported():
            if (generations := self._generations.read()) is None:
                with self._generations.changing():
                    generations = self._readable()
            generation = generations.get(session.key.sha256, 0)
            secret = self._new_secret()
        return f"{content}:{_signature(secret, content, session.key, generation)}"

    def end(self, session: Session) -> None:
        """End all sessions of the key of this one. Raises ``SessionsNotKept``."""
        with _files_reported(), self._generations.changing():
            known = {key.sha256 for key in self._keys.known()}
            latest = {key: number for key, number in self._readable().items() if key in known}
            latest[session.key.sha256] = latest.get(session.key.sha256, 0) + 1
            self._generations.replace(latest)

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is forged, or it or its key has ended.

        Raises ``InvalidKeyFile``.
        """
        parts = cookie.split(":")
        if len(cookie) > _MAX_CHARS or len(parts) != 4 or not cookie.isascii():
            return None
        name, began, ends, signature = parts
        secret = self._secret()
        content, now_s = f"{name}:{began}:{ends}", self._clock()
        try:
            generations = self._generations.read()
        except OSError as error:
            logger.warning("all sessions are rejected: %s", error)
            return None
        if generations is None:
            return None
        for key in self._keys.known():  # after a rotation, several have this name
            if key.name != name or secret is None or key.has_ended(now_s):
                continue
            generation = generations.get(key.sha256, 0)
            if hmac.compare_digest(_signature(secret, content, key, generation), signature):
                session = Session(key, int(began), int(ends))
                return session if now_s < session.ends_at else None
        return None

    def renewed(self, session: Session) -> Session | None:
        """The session with a later end; None while most of its time is left."""
        latest = session.began_at + MAX_LIFETIME_S
        ends_at = min(int(self._clock()) + LIFETIME_S, latest)
        is_worth_it = ends_at - session.ends_at >= LIFETIME_S / 4 or ends_at == latest
        if ends_at <= session.ends_at or not is_worth_it:
            return None
        return replace(session, ends_at=ends_at)

    def seconds_left(self, session: Session) -> int:
        return session.ends_at - int(self._clock())

    def _readable(self) -> Mapping[str, int]:
        """What the file has. A damaged one is replaced; call it while the file is locked.

        No session may outlive one whose end was in that file, so all of them end first.
        """
        if (generations := self._generations.read()) is None:
            with self._secret_lock():
                replace_file(self._secret_file, secrets.token_bytes(_NUM_BYTES))
            self._generations.replace(generations := {})
        return generations

    def _secret(self) -> bytes | None:
        try:
            secret = read_stored(self._secret_file)
        except OSError:
            return None
        return secret if len(secret) == _NUM_BYTES else None

    def _new_secret(self) -> bytes:
        """Return the secret; make it if there is none."""
        with self._secret_lock():
            secret = self._secret()
            if secret is None:
                secret = secrets.token_bytes(_NUM_BYTES)
                replace_file(self._secret_file, secret)
        return secret

    def _secret_lock(self) -> FileLock:
        self._secret_file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self._secret_file}.lock", mode=0o600)


@contextmanager
def _files_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionsNotKept(error) from error


def _signature(secret: bytes, content: str, key: ApiKey, generation: int) -> str:
    signed = f"{content}:{key.sha256}:{generation}"
    return hmac.new(secret, signed.encode(), hashlib.sha256).hexdigest()


def _generations(content: bytes) -> Mapping[str, int] | None:
    """How often the sessions of keys were ended, by the hash of the key. None if it is damaged."""
    try:
        generations = parse_record(content)
        if not all(type(n) is int and abs(n) <= MAX_INTEGER for n in generations.values()):
            raise InvalidRecord("expected a JSON object of integers")
    except InvalidRecord as error:  # once for each version of the file
        logger.warning("all sessions were ended, because %s is damaged: %s", GENERATIONS, error)
        return None
    return generations
