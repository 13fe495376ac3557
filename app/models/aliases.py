"""Aliases: names that an operator gives to variants, such as ``prod``, and can switch at any time.

They are in a file of the data directory, so that generation needs no job store. It is replaced
atomically, so that a switch reaches all API processes of the directory at once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.json_file import JsonFile
from pruning.models.names import is_name
from pruning.records import parse_record, reason_of, sendable

_FORMAT = 1


class InvalidAlias(ValueError):
    """The name is not allowed for an alias, or the target cannot have one."""


class AliasTaken(ValueError):
    """A model has this name."""


class InvalidAliasFile(ValueError):
    """The file of aliases is malformed, or cannot be read or written."""


class Aliases:
    """The aliases of one data directory. Every method may raise ``InvalidAliasFile``."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[dict[str, str]] = JsonFile(
            data_dir / "aliases.json", self._parsed, dict
        )

    def all(self) -> Mapping[str, str]:
        """The target of each alias."""
        try:
            return self._file.read()
        except OSError as error:
            raise InvalidAliasFile(f"{self._file.path} cannot be read: {error.strerror}") from error

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
                f"{alias[:128]!r} cannot be an alias: expected up to 128 letters, digits, '.', "
                f"'_' and '-', beginning with a letter or a digit"
            )
        with self._changing():
            self._replace({**self.all(), alias: target})

    def remove(self, alias: str) -> bool:
        """False if there is no such alias."""
        with self._changing():
            rest = dict(self.all())
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
            text = f"{self._file.path} cannot be written, and is as it was: {error.strerror}"
            raise InvalidAliasFile(text) from error

    def _replace(self, aliases: Mapping[str, str]) -> None:
        self._file.replace({"format": _FORMAT, "aliases": dict(sorted(aliases.items()))})

    def _parsed(self, text: bytes) -> dict[str, str]:
        try:
            data = parse_record(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']} is not {_FORMAT}")
            return {sendable(alias): sendable(target) for alias, target in data["aliases"].items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidAliasFile(
                f"{self._file.path} is not as `sleb models alias` writes it "
                f"({reason_of(error)}): restore it, or remove it and set the aliases again"
            ) from error
