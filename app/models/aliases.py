"""Aliases: names that an operator gives to variants, such as ``prod``, and can switch at any time.

They are in a file of the data directory, so that generation needs no job store. It is replaced
atomically, so that a switch reaches all API processes of the directory at once.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.json_file import JsonFile
from pruning.models.names import is_name, split_int8, split_raw
from pruning.records import parse_record, reason_of, sendable

logger = logging.getLogger(__name__)

FILE = "aliases.json"
_FORMAT = 1
_MAX_NAME, _MAX_TARGET = 128, 512  # characters


class InvalidAlias(ValueError):
    """The name is not allowed for an alias, or the target cannot have one."""


class AliasTaken(ValueError):
    """A model has this name."""


class InvalidAliasFile(ValueError):
    """The file of aliases is malformed, or cannot be read or written."""


@dataclass(frozen=True)
class _Content:
    """What the file has. ``stored`` has broken aliases too, which another change must not lose."""

    stored: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)  # the reasons by alias
    error: str | None = None  # of the whole file, which then has nothing


class Aliases:
    """The aliases of one data directory.

    Methods may raise ``InvalidAliasFile``, except those for lists.
    """

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[_Content] = JsonFile(data_dir / FILE, self._parsed, _Content)

    def all(self) -> Mapping[str, str]:
        """The target of each alias that is not broken."""
        return self._read().targets

    def listed(self) -> Mapping[str, str]:
        """As ``all``, but nothing if the file is broken."""
        try:
            return self.all()
        except InvalidAliasFile:
            return {}

    def broken(self) -> Mapping[str, str]:
        """Why aliases cannot be used, by name; for the whole file by its name."""
        try:
            return self._read().broken
        except InvalidAliasFile as error:
            return {FILE: str(error)}

    def names_of(self, name: str) -> list[str]:
        """The aliases of a model or checkpoint, and of its variants."""
        of_variants = tuple(f"{name}{sign}" for sign in ("-+" if "@" in name else "@+"))
        return [
            alias
            for alias, target in self.all().items()
            if target == name or target.startswith(of_variants)
        ]

    def set(self, alias: str, target: str) -> None:
        """From now on ``alias`` means ``target``. Raises ``InvalidAlias``."""
        if not is_name(alias):
            raise InvalidAlias(
                f"{alias[:_MAX_NAME]!r} is not a valid alias: expected up to {_MAX_NAME} "
                "letters, digits, '.', '_' and '-', beginning with a letter or a digit"
            )
        with self._changing():
            self._replace({**self._read().stored, alias: target})

    def remove(self, alias: str) -> bool:
        """False if there is no such alias."""
        with self._changing():
            rest = dict(self._read().stored)
            if rest.pop(alias, None) is None:
                return False
            self._replace(rest)
        return True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with self._file.changing():
                yield
        except OSError as error:
            text = f"cannot write {self._file.path}, which is unchanged: {error.strerror}"
            raise InvalidAliasFile(text) from error

    def _replace(self, aliases: Mapping[str, Any]) -> None:
        self._file.replace({"format": _FORMAT, "aliases": dict(sorted(aliases.items()))})

    def _read(self) -> _Content:
        try:
            content = self._file.read()
        except OSError as error:
            raise InvalidAliasFile(f"cannot read {self._file.path}: {error.strerror}") from error
        if content.error is not None:
            raise InvalidAliasFile(content.error)
        return content

    def _parsed(self, text: bytes) -> _Content:
        """Called once for each version of the file, so each reason is one line of the log."""
        try:
            content = _content_of(parse_record(text))
        except (ValueError, LookupError, TypeError) as error:
            content = _Content(
                error=f"{self._file.path} is invalid ({reason_of(error)}): restore it, or remove "
                "it and set the aliases again"
            )
            logger.warning("aliases are unavailable: %s", content.error)
        for alias, reason in content.broken.items():
            logger.warning("alias %r is unavailable: %s", alias, reason)
        return content


def _content_of(data: Mapping[str, Any]) -> _Content:
    if data["format"] != _FORMAT:
        raise ValueError(f"format {data['format']!r} is not supported, expected {_FORMAT}")
    stored = data["aliases"]
    if not isinstance(stored, dict):
        raise TypeError("aliases: expected a JSON object")
    reasons = {alias: _why_broken(alias, target, stored) for alias, target in stored.items()}
    return _Content(
        stored,
        {alias: stored[alias] for alias, reason in reasons.items() if reason is None},
        {sendable(alias[:_MAX_NAME]): reason for alias, reason in reasons.items() if reason},
    )


def _why_broken(alias: str, target: object, stored: Collection[str]) -> str | None:
    if not is_name(alias):
        return "invalid alias name: remove it from the file"
    if not isinstance(target, str) or not 0 < len(target) <= _MAX_TARGET:
        return "the target is not a valid model name: change the target, or remove the alias"
    if sendable(target) != target:
        return "the target is not a string: change the target"
    if split_raw(split_int8(target)[0])[0] in stored:  # which could go round in a circle
        return "the target is another alias: use the name of a model, or remove the alias"
    return None
