"""``python -m tools.docs.rest [FILE]``: write the page of all routes, from the app itself.

An OpenAPI document as Markdown: every route with what it takes and answers, and every schema.
"""

import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from app.config import ServeSettings
from app.main import create_app

_KEYS = "bearer"  # the name of the one scheme
_REFERENCE = "#/components/schemas/"
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
}

Json = Mapping[str, Any]


def markdown(document: Json) -> str:
    """Sections for the tags, in the order of the routes, and one for the schemas."""
    sections: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines = sections.setdefault(operation["tags"][0], [])
            lines += _operation(f"{method.upper()} {path}", operation)
    lines = [line for tag, its in sections.items() for line in (f"## {_capital(tag)}", "", *its)]
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return "\n".join(lines)


def _operation(title: str, operation: Json) -> Iterator[str]:
    yield from (f"### `{title}`", "")
    if "description" in operation:
        yield from (_prose(operation["description"]), "")
    for scheme in operation.get("security", ()):
        yield from (f"Scope: {', '.join(f'`{scope}`' for scope in scheme[_KEYS])}.", "")
    if parameters := operation.get("parameters"):
        rows = ((its["name"], its["schema"], its) for its in parameters)
        yield from _fields("parameter", rows)
    if body := operation.get("requestBody"):
        for kind, content in body["content"].items():
            yield from (f"Takes {_type(content['schema'])} as `{kind}`.", "")
    yield from ("| status | answer | means |", "|---|---|---|")
    for status, answer in sorted(operation["responses"].items()):
        kinds = [_answer(*its) for its in answer.get("content", {}).items()]
        means = _in_cell(answer["description"].replace("Successful Response", ""))
        yield f"| {status} | {'<br>'.join(kinds)} | {means} |"
    yield ""


def _answer(kind: str, content: Json) -> str:
    schema = content.get("schema")
    return f"{_type(schema)}, `{kind}`" if schema and "$ref" in schema else f"`{kind}`"


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield from (f"### {name}", "")
    if "description" in schema:
        yield from (_prose(schema["description"]), "")
    if properties := schema.get("properties"):
        required = schema.get("required", ())
        rows: Iterator[tuple[str, Json, Json]] = (
            (field, {"default": None, **its} if field not in required else its, {})
            for field, its in properties.items()
        )
        yield from _fields("field", rows)
    else:
        yield from (_capital(f"{_type(schema)}."), "")


def _fields(title: str, rows: Iterator[tuple[str, Json, Json]]) -> Iterator[str]:
    yield from (f"| {title} | type | by default | means |", "|---|---|---|---|")
    for name, schema, place in rows:
        default = "" if schema.get("default") is None else f"`{_json(schema['default'])}`"
        is_needed = place.get("required", "default" not in schema)
        means = _prose(schema.get("description") or place.get("description") or "")
        cells = (f"`{name}`", _type(schema), "required" if is_needed else default, means)
        yield f"| {' | '.join(map(_in_cell, cells))} |"
    yield ""


def _type(schema: Json) -> str:
    """In words, with a link for what has a section of its own; null is left out."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE)
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            kinds = dict.fromkeys(_type(its) for its in schema[key] if its.get("type") != "null")
            return " or ".join(kinds)
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{_json(value)}`" for value in schema["enum"])
    return _with_bounds(_plain(schema), schema)


def _plain(schema: Json) -> str:
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(values)}"
    return str(kind)


def _with_bounds(kind: str, schema: Json) -> str:
    found = [text.format(_number(schema[its])) for its, text in _BOUNDS.items() if its in schema]
    return ", ".join([kind, *found])


def _number(value: float) -> str:
    return str(int(value) if value == int(value) else value)


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prose(text: str) -> str:
    """Docstrings as Markdown, without their lines."""
    paragraphs = text.replace("``", "`").strip().split("\n\n")
    return "\n\n".join(its.replace("\n", " ") for its in paragraphs)


def _in_cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n\n", "<br>")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_TARGET = Path(__file__).parents[1] / "docs" / "rest.md"
_ELSEWHERE = IPv4Address("192.0.2.1")  # of a service that has to ask for keys
_PAGE = """\
<!-- Made by `make docs` from the routes and their schemas: change it there. -->

# REST

What `/openapi.json` says, to read. `/docs` of a running service has the same, to try out. A field
that is not listed is refused, but on `/v1`, where some are ignored as OpenAI's API has them.
Where a scope is named, a [key](guides/keys.md) with any of these will do; a service that asks for
no keys answers without. Guides: [jobs](guides/jobs.md),
[generating and comparing](guides/serve.md).

{routes}"""


def page() -> str:
    settings = ServeSettings(data_dir=Path("/nonexistent"), host=_ELSEWHERE)
    app = create_app(settings, redis_url="unix:///none")
    return _PAGE.format(routes=markdown(app.openapi()))


def main(target: Path) -> None:
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _TARGET)
