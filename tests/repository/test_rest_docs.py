"""docs/rest.md is generated from the OpenAPI document, and complete."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.pages import ROOT
from tools.docs.rest import main, markdown, page

PAGE = ROOT / "docs" / "rest.md"


def test_the_page_is_current(tmp_path: Path) -> None:
    main(tmp_path / "rest.md")
    assert (tmp_path / "rest.md").read_text(encoding="utf-8") == page()
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_it_has_every_route_and_every_field(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    text = PAGE.read_text(encoding="utf-8")
    routes = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert set(re.findall(r"^### `(.*)`$", text, re.MULTILINE)) == routes
    for name, schema in document["components"]["schemas"].items():
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        fields = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        assert fields == set(schema.get("properties", ())), name


def test_every_field_of_every_schema_is_described(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    missing = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]
    assert missing == []


def test_it_says_which_fields_may_be_null() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n### PruneJobView\n")[2]
    assert "| `started_at` | number or null | required |" in section
    assert "| `created_at` | number | required |" in section


def test_every_type_it_links_to_has_a_section() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = {title.lower() for title in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= sections


@pytest.mark.parametrize(
    ("schema", "cells"),
    [
        ({"type": "integer", "minimum": 1, "default": 3}, "integer, ≥ 1 | `3` | "),
        ({"type": "boolean", "default": False}, "boolean | `false` | "),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null |  | "),
        ({"enum": ["a", "b"], "description": "x|y"}, "`a`, `b` |  | x&#124;y"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/B"}}, "list of [B](#b) |  | "),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "object of number |  | "),
        ({"const": "x"}, "`x` |  | "),
    ],
)
def test_a_field_is_a_row(schema: dict[str, object], cells: str) -> None:
    named = {"components": {"schemas": {"A": {"properties": {"f": schema}}}}, "paths": {}}
    assert f"| `f` | {cells} |" in markdown(named)
    needed = {"properties": {"f": schema}, "required": ["f"]}
    found = markdown({"components": {"schemas": {"A": needed}}, "paths": {}})
    assert ("| required |" in found) == ("default" not in schema)
