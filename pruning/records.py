"""Stored records: files, and JSON that is read within limits, by the types of its fields.

Anyone with write access to a store can change its records, so a bad record must be an error
that names its reason.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Record = TypeVar("_Record")

MAX_BYTES = 2**24
MAX_TEXT = 2**20  # characters of one text
MAX_INTEGER = 2**63  # what other programs can hold
MAX_NUMBER = 1e306  # above perplexities of broken models, and below what sums overflow
MAX_TIME_S = 2.5e11  # seconds since the epoch: the last years that a date can name
_MAX_SHOWN = 80
_MAX_REASON = 500


# what reading raises for a record that is none
BROKEN_BY = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class InvalidRecord(ValueError):
    """A stored record is not one of its kind."""


def read_stored(path: Path, most_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file that another user may have put there.

    Raises ``OSError``, also for a pipe or a device, which could be read without end.
    """
    with open_stored(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > most_bytes:
            reason = f"it has {num_bytes} bytes, more than the limit of {most_bytes}"
            raise OSError(errno.EFBIG, reason, str(path))
        return file.read(most_bytes)


def open_stored(path: Path, *, is_link_allowed: bool = True) -> BinaryIO:
    """A file for reading that another user may have put there.

    Raises ``OSError``, also for a pipe or a device, and for a link unless it is allowed.
    """
    # without O_NONBLOCK, opening a pipe would wait for a writer
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if is_link_allowed else os.O_NOFOLLOW)
    file = os.fdopen(os.open(path, flags), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the file atomically. Only its owner may read it, unless the ``mode`` allows more."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as to:
            to.write(content)
            to.flush()
            os.fsync(to.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def parse_record(content: bytes | str) -> dict[str, Any]:
    """The fields of a record. Raises ``InvalidRecord``."""
    if len(content) > MAX_BYTES:
        raise InvalidRecord(f"it has {len(content)} bytes, more than the limit of {MAX_BYTES}")
    try:
        parsed = json.loads(content)
    except RecursionError as error:
        raise InvalidRecord("it is nested too deeply") from error
    except ValueError as error:
        raise InvalidRecord(f"it is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRecord(f"expected a JSON object, got {_shown(parsed)}")
    return parsed


def fields_of(path: Path) -> dict[str, Any]:
    """The fields of the record in a file; none if there is no such file, or no record in it."""
    try:
        return parse_record(read_stored(path))
    except (OSError, InvalidRecord):
        return {}


def read_record(kind: type[_Record], fields: object) -> _Record:
    """The dataclass that ``asdict`` and JSON have made these fields of.

    Raises ``InvalidRecord``, and what ``kind`` raises for values that it refuses.
    """
    record = _read(fields, kind, "")
    assert isinstance(record, kind)
    return record


def check_record(record: object) -> None:
    """Compare all fields of a dataclass with their types. Raises ``InvalidRecord``."""
    _read(record, type(record), "")


def check_time(name: str, at: float | None) -> None:
    """Raises ``InvalidRecord`` for what is no time in seconds since the epoch."""
    if at is not None and not 0 <= at <= MAX_TIME_S:
        raise InvalidRecord(f"{name}: expected seconds since the epoch, got {_shown(at)}")


def reason_of(error: Exception) -> str:
    """What was wrong with a record, as a text that can be sent: it may quote the record."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return sendable(reason[:_MAX_REASON])


def sendable(text: str) -> str:
    """The text with halves of characters escaped, which cannot be sent."""
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def _types(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _read(value: object, kind: Any, where: str) -> Any:  # noqa: ANN401 - any type
    """The value as one of this kind."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _read_any_of(value, get_args(kind), where)
    if origin not in (None, Literal):
        return _read_items(value, origin, get_args(kind), where)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_fields(value, kind, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        _expect(value in [*kind], value, f"one of {', '.join(map(str, kind))}", where)
        return kind(value)
    if origin is Literal:
        _expect(value in get_args(kind), value, f"one of {get_args(kind)}", where)
    elif kind is Any:
        _check_plain(value, where)
    else:
        _check_value(value, kind, where)
    return value


def _read_fields(value: object, kind: type, where: str) -> object:
    is_made = type(value) is kind
    _expect(is_made or isinstance(value, Mapping), value, kind.__name__, where)
    known = {each.name: getattr(value, each.name, None) for each in fields(kind)}
    values = value if isinstance(value, Mapping) else known
    read = {
        name: _read(item, _types(kind)[name], f"{where}.{name}".lstrip("."))
        for name, item in values.items()
        if name in known
    }
    if is_made:
        return value
    try:
        return kind(**{**values, **read})
    except TypeError as error:  # one is missing, or unknown: logs may not take its name as it is
        raise InvalidRecord(sendable(str(error))) from None


def _read_any_of(value: object, kinds: tuple[Any, ...], where: str) -> object:
    errors = []
    for kind in kinds:
        try:
            return _read(value, kind, where)
        except InvalidRecord as error:
            errors.append(error)
    # of the kind that describes it best, which is not None
    raise errors[0]


def _read_items(value: object, origin: Any, kinds: tuple[Any, ...], where: str) -> object:  # noqa: ANN401 - any type
    if isinstance(value, Mapping):
        _expect(issubclass(origin, Mapping), value, origin.__name__, where)
        return {
            _read_key(key, kinds[0], where): _read(item, kinds[1], f"{where}.{_shown(key)}")
            for key, item in value.items()
        }
    is_list = isinstance(value, tuple | list | frozenset) and not issubclass(origin, Mapping)
    _expect(is_list, value, "a list", where)
    assert isinstance(value, tuple | list | frozenset)
    is_fixed = origin is tuple and len(kinds) > 1 and kinds[-1] is not Ellipsis
    _expect(not is_fixed or len(value) == len(kinds), value, f"{len(kinds)} values", where)
    items = [
        _read(item, kinds[number] if is_fixed else kinds[0], f"{where}.{number}")
        for number, item in enumerate(value)
    ]
    return origin(items) if origin in (tuple, frozenset) else items


def _read_key(key: object, kind: Any, where: str) -> Any:  # noqa: ANN401 - any type
    """JSON has only texts as keys."""
    if kind is int and isinstance(key, str):
        with suppress(ValueError):
            key = int(key)
    return _read(key, kind, where)


def _check_value(value: object, kind: Any, where: str) -> None:  # noqa: ANN401 - any type
    if kind is NoneType:
        _expect(value is None, value, "null", where)
    elif kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(is_number and _fits(value), value, f"a number below {MAX_NUMBER:g}", where)
    elif kind is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        _expect(is_integer and _fits(value), value, "an integer", where)
    elif kind is str:
        _expect(isinstance(value, str) and _is_text(value), value, "a text", where)
    else:
        _expect(isinstance(value, kind), value, kind.__name__, where)


def _check_plain(value: object, where: str) -> None:
    """What JSON can hold, within the limits of the rest."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            left += part
        elif isinstance(part, str):
            _expect(_is_text(part), part, "a text", where)
        elif part is not None and not isinstance(part, bool):
            _expect(isinstance(part, int | float) and _fits(part), part, "a number", where)


def _fits(number: object) -> bool:
    if isinstance(number, int):
        return abs(number) <= MAX_INTEGER
    return isinstance(number, float) and abs(number) < MAX_NUMBER  # not nan or inf: no JSON


def _is_text(text: str) -> bool:
    """Whether it is short enough and has no half of a character, which cannot be sent."""
    return len(text) <= MAX_TEXT and text == sendable(text)


def _expect(is_so: bool, value: object, expected: str, where: str) -> None:
    if not is_so:
        place = where or "the record"
        raise InvalidRecord(f"{place}: expected {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, str | int | float):
        return ascii(value)[:_MAX_SHOWN]
    return type(value).__name__
