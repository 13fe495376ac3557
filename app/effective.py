"""What every setting is in this process and where that comes from, fit to be shown to anybody."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.config import ClusterSettings
from app.settings import Setting, settings, shown
from pruning.config import WorkerSettings, secret_files, set_variables

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
