"""Every setting of every process in one table, made of the fields; and variables that are none.

What every setting is in this process and where that comes from, fit to be shown to anybody.

Where the processes of one machine listen: not two of them on one port.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from app.config import ClusterSettings, ServeSettings
from pruning.config import WorkerSettings, secret_files, set_variables

_PREFIX = "SLEB_"
_OF_TESTS = "SLEB_TEST_"


class UnknownSetting(ValueError):
    """A variable that looks like a setting and is none."""


@dataclass(frozen=True)
class Setting:
    field: str
    variables: tuple[str, ...]  # the first is ours; any other is used where ours is unset
    default: str
    meaning: str  # Markdown


def settings() -> tuple[Setting, ...]:
    """Those of all processes first, then those of workers, of the API, and of a cluster."""
    fields = {**WorkerSettings.model_fields, **ClusterSettings.model_fields}
    return tuple(
        Setting(name, _variables(name, field), shown(_default(field)), field.description or "")
        for name, field in fields.items()
    )


def shown(value: object) -> str:
    """As one would write it into a variable; "unset" for None."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{its}"' for its in value) + "]"
    return str(value.value if isinstance(value, Enum) else value)


def markdown(table: Iterable[Setting]) -> str:
    """The rows as a Markdown table."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for its in table:
        default = its.default.replace(str(Path.home()), "~")
        quoted = default if default == "unset" else f"`{default}`"
        lines.append(f"| `{its.variables[0]}` | {quoted} | {its.meaning} |")
    return "\n".join(lines) + "\n"


def check_variables(variables: Mapping[str, str] | None = None) -> None:
    """Raise ``UnknownSetting`` for each ``SLEB_*`` among them that is no setting.

    By default those of this process, and its files of secrets. What begins with ``SLEB_TEST_`` is
    left to the tests.
    """
    given = {*set_variables(), *secret_files()} if variables is None else set(variables)
    known = {name for its in settings() for name in its.variables}
    unknown = sorted(
        name
        for name in given
        if name.startswith(_PREFIX) and not name.startswith(_OF_TESTS) and name not in known
    )
    if unknown:
        raise UnknownSetting("\n".join(_no_setting(name, known) for name in unknown))


def _no_setting(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, [its for its in known if its.startswith(_PREFIX)], n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/settings.md has them all."
    return f"there is no setting {name}: {hint} Correct or unset the variable"


def _variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (f"{_PREFIX}{name.upper()}",)


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})


_MASK = "***"
# Rather too much than too little: a password may have a slash in it, and a query any key.
_USERINFO = re.compile(r"(?<=://).*@")
_QUERY = re.compile(r"(?<=[?&])(?!db=)([^=&#]+)=[^&#]*")


@dataclass(frozen=True)
class Effective:
    variable: str
    value: str  # secrets are masked
    source: str  # "default", "file" or "environment", with the variable's name if it is another one


def effective() -> list[Effective]:
    """In the order of the table. Raises pydantic's ``ValidationError`` for what cannot be."""
    worker, api = WorkerSettings(), ClusterSettings()
    places: dict[str, Collection[str]] = {"environment": set_variables(), "file": secret_files()}
    return [_of(its, worker if hasattr(worker, its.field) else api, places) for its in settings()]


def without_secrets(url: str) -> str:
    """The URL without user, password and what its query gives, except for ``db``."""
    return _QUERY.sub(rf"\1={_MASK}", _USERINFO.sub(f"{_MASK}@", url))


def _of(
    its: Setting, of: WorkerSettings | ClusterSettings, places: Mapping[str, Collection[str]]
) -> Effective:
    value: Any = getattr(of, its.field)
    source = next(_sources(its, places), "default")
    return Effective(its.variables[0], _masked(type(of), its.field, shown(value)), source)


def _sources(its: Setting, places: Mapping[str, Collection[str]]) -> Iterator[str]:
    """The one that is used comes first."""
    for place, names in places.items():
        for name in its.variables:
            if name in names:
                yield place if name == its.variables[0] else f"{place}, {name}"


def _masked(model: type[WorkerSettings | ClusterSettings], field: str, text: str) -> str:
    if "://" in text:
        return without_secrets(text)
    is_secret = not model.model_fields[field].repr and text != "unset"
    return _MASK if is_secret else text


class PortTaken(ValueError):
    """Two processes of one machine are to listen on one port."""


def check_ports(api: ServeSettings, worker: WorkerSettings) -> None:
    """Of an API and a worker on one machine. Raises ``PortTaken``."""
    if api.port and api.port == worker.worker_metrics_port:
        raise PortTaken(
            f"SLEB_PORT and SLEB_WORKER_METRICS_PORT are both {api.port}: the API and the "
            "worker's metrics need a port each"
        )
