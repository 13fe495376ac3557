"""The description of the API at ``/openapi.json``, where FastAPI cannot know better by itself."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

_TEXT = {"type": "string"}
# the content of an answer that is a stream of server-sent events, in the words of OpenAPI 3.2
EVENT_STREAM: Mapping[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {
                "id": _TEXT,
                "event": _TEXT,
                "data": _TEXT,
                "retry": {"type": "integer"},
            },
        }
    }
}


def describe_exactly(app: FastAPI) -> None:
    """Say that a parameter of a request can be absent, but never null."""
    generate = app.openapi

    def description() -> dict[str, Any]:
        found = generate()
        for path in found["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
        return found

    app.openapi = description  # type: ignore[method-assign]  # as FastAPI tells one to


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest}
