"""What bodies have in common: their fields, and how they are made of records."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_FIELDS = 128

_View = TypeVar("_View", bound=BaseModel)


Ignored = Annotated[Any, Field(description="Accepted and ignored.")]


class Body(BaseModel):
    """A request body. Unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, body: object) -> object:
        # each unknown field is an error of its own, and a body has room for 300,000
        if isinstance(body, dict) and len(body) > MAX_FIELDS:
            raise ValueError(f"{len(body)} fields: expected at most {MAX_FIELDS}")
        return body


def documented(default: Any, description: str, schema: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - of any type
    """A field with a default. ``schema`` documents a range, which the spec or the engine checks."""
    extra = None if schema is None else dict(schema)
    return Field(default=default, description=description, json_schema_extra=extra)


def optional(description: str, schema: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - of any type
    """A field that is null by default."""
    return documented(None, description, schema)


def kind(name: str) -> Any:  # noqa: ANN401 - a literal
    """The field ``object`` of a body of this kind."""
    return Field(default=name, description="Type of this object.")


def with_field(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of bodies that have this field, as in ``schema``."""
    return {"required": [name], "properties": {name: schema}}


def view_of(body: type[_View], record: object, /, **others: object) -> _View:
    """A body with the attributes of ``record``, and ``others`` where it has none or other ones.

    Plain data within these becomes what the field is. ``object``, the kind of a body, is a default.
    """
    names = body.model_fields.keys() - others.keys() - {"object"}
    same = {name: getattr(record, name) for name in names}
    return body.model_validate({**same, **others}, from_attributes=True)
