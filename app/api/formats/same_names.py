"""Bodies of plain data whose fields have the same names."""

from typing import TypeVar

from pydantic import BaseModel

_View = TypeVar("_View", bound=BaseModel)


def view_of(kind: type[_View], found: object | None) -> _View | None:
    """None of None."""
    return None if found is None else kind.model_validate(found, from_attributes=True)
