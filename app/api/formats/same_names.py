"""Bodies made of plain data that has the same names."""

from typing import TypeVar

from pydantic import BaseModel

_View = TypeVar("_View", bound=BaseModel)


def view_of(kind: type[_View], record: object, /, **others: object) -> _View:
    """A body with the attributes of ``record``, and ``others`` where it has none or other ones.

    Plain data within these becomes what the field is. ``object``, the kind of a body, is a default.
    """
    names = kind.model_fields.keys() - others.keys() - {"object"}
    same = {name: getattr(record, name) for name in names}
    return kind.model_validate({**same, **others}, from_attributes=True)
