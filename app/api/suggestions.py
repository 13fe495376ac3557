"""What a client may have meant: a known name near an unknown one."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from fastapi import Request
from pydantic import BaseModel

from app.api.problems import is_openai
from pruning.spec.prune import REMOVED


def field_suggestion(request: Request, loc: Sequence[int | str]) -> str:
    """What to do about an unknown field: take the name that is near, or leave it out.

    ``loc`` is where pydantic found it: ``body``, names, indices, and tags of unions.
    """
    body = getattr(request.scope.get("route"), "body_field", None)
    models = set(_models_in(body.field_info.annotation)) if body is not None else set()
    for part in loc[1:-1]:
        inner = {
            candidate
            for model in models
            for name, field in model.model_fields.items()
            if name == part
            for candidate in _models_in(field.annotation)
        }
        models = inner or models  # an index or a tag changes nothing
    known = {name for model in models for name in model.model_fields}
    name = str(loc[-1])
    if "num_remove" in known and (reason := REMOVED.get(name)):
        return f"it was removed, as {reason}; leave it out"
    near = _nearest(name, known)
    return f"did you mean {near}?" if near else "leave it out"


def path_suggestion(request: Request) -> str:
    """Words about a path that no route has."""
    path = request.url.path
    known = request.app.openapi()["paths"]
    near = _nearest(path, (each for each in known if is_openai(each) == is_openai(path)))
    meant = f"did you mean {near}? " if near else ""
    return f"no route has the path {path[:128]!r}: {meant}/docs and /openapi.json list all of them"


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(name, sorted(known), n=1)), "")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
