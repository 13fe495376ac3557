"""Values that a parser or a comparison may choke on: each is refused or used, never a 500.

The numeric fields come from the description of the API, so that a new field is attacked as well.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.engine.scheduling.sequence import InvalidSampling, SamplingParams

pytestmark = pytest.mark.usefixtures("nothing_preloaded")

HUGE = 10**400  # no float holds it
NUMBERS = {
    "huge": str(HUGE),
    "negative": str(-HUGE),
    "longest": "9" * 4300,  # Python parses no more digits
    "too-long": "9" * 4301,
    "float": "1e308",  # an integer of 309 digits for a lax integer field
    "overflow": "1e999",
    "nan": "NaN",
    "text": '"' + "9" * 4000 + '"',
    "unsigned": str(2**64),
}
TEXTS = {
    "surrogate": '"\\ud800"',  # no encoding has it
    "null character": '"\\u0000"',
    "number": str(HUGE),
    "long": '"' + "a" * 5000 + '"',
}
JSON = {"content-type": "application/json"}
GOOD: dict[str, dict[str, Any]] = {
    "/generate": {"model": "tiny", "prompt": "a", "max_new_tokens": 1},
    "/compare": {"models": ["tiny", "tiny"], "prompt": "a", "max_new_tokens": 1, "repeats": 1},
    "/evals": {"model": "tiny", "texts": ["code"], "num_windows": 1, "seqlen": 8},
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}],
        "max_completion_tokens": 1,
    },
    "/prune-jobs": {"model": "tiny", "num_remove": 1, "dry_run": True},
}
NAMES = ["%00", "%ff", "a" * 5000, "..%2f..", "tiny@-" + "9" * 5000, "@"]
HEADERS = {
    "accept": [
        "application/openmetrics-text; version=x",
        "application/openmetrics-text; version=1.0.0; escaping=x",
        "application/openmetrics-text; version=1.0.0; escaping",
        "application/openmetrics-text; version=" + "9" * 5000,
        "application/openmetrics-text; version=-1.0",
        "text/plain; version=x",
        "text/plain; version=",
        "text/plain; version=1.0.0; escaping=x",
        ";;,;=",
    ],
    "content-type": ["application/json; charset=x", "multipart/form-data", ";", "a/b/c", "json"],
    "content-encoding": ["gzip", "x"],
    "if-none-match": ['"', "W/", "*,*"],
    "range": ["bytes=x-", "bytes=-", "bytes=" + "9" * 5000 + "-", "bytes=0-0," * 200, "bytes=5-1"],
    "if-range": ["x", "Mon, 99 Foo 2020 99:99:99 GMT"],
    "authorization": ["Bearer", "Basic =", "Bearer \xff", "\xff"],
    "cookie": ["=;=", "\xff"],
    "host": ["localhost:x", "[", "localhost:99999999"],
    "idempotency-key": ["\xff", "a" * 300],
    "last-event-id": ["x", "9" * 5000 + "-1", "0-" + "9" * 19],
    "traceparent": ["x", "00-" + "f" * 32 + "-" + "f" * 16 + "-ff"],
    "x-request-id": ["\xff", "a" * 500],
    "x-forwarded-for": ["x", "999.1.1.1"],
}


Path = tuple[str, ...]  # names of fields; "0" is the first item of a list


def places(schema: dict[str, Any], document: dict[str, Any], at: Path = ()) -> Iterator[Path]:
    """Where the schema has a number or a text. Text comes with the type as the last name."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for kind in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from places(kind, document, at) if "required" not in kind else ()
    if schema.get("type") in ("integer", "number", "string"):
        yield (*at, str(schema["type"]))
    if "items" in schema:
        yield from places(schema["items"], document, (*at, "0"))
    for name, field in schema.get("properties", {}).items():
        yield from places(field, document, (*at, name))


def with_value(value: Any, path: Path, text: str) -> Any:
    """A copy of the value, with a mark for this text at the path."""
    if not path:
        return f"@{text}@"
    if path[0] == "0":
        first = value[0] if isinstance(value, list) and value else {}
        return [with_value(first, path[1:], text)]
    given = value if isinstance(value, dict) else {}
    return {**given, path[0]: with_value(given.get(path[0]), path[1:], text)}


@pytest.mark.parametrize("path", GOOD)
def test_no_value_in_a_body_is_an_error_of_the_service(path: str, client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    found = set(places(schema, document))
    assert any(place[-1] != "string" for place in found)
    failed = []
    for place in sorted(found):
        for name, text in (TEXTS if place[-1] == "string" else NUMBERS).items():
            content = json.dumps(with_value(GOOD[path], place[:-1], name))
            answer = client.post(path, content=content.replace(f'"@{name}@"', text), headers=JSON)
            if answer.status_code >= 500 or len(answer.content) > 20_000:
                failed.append((".".join(place), name, answer.status_code))
    assert not failed


def test_no_header_is_an_error_of_the_service(client: TestClient) -> None:
    requests = [
        ("GET", "/metrics"),
        ("GET", "/models"),
        ("POST", "/generate"),
        ("POST", "/prune-jobs"),
        ("GET", "/prune-jobs/none/events"),
        ("GET", "/prune-jobs/none/checkpoints/config.json"),
    ]
    failed = []
    for header, value in [(name, value) for name in HEADERS for value in HEADERS[name]]:
        for method, path in requests:
            sent = {header.encode(): value.encode("latin-1")}
            answer = client.request(method, path, content=b"{}", headers=sent)
            if answer.status_code >= 500:
                failed.append((header, value[:60], method, path, answer.status_code))
    assert not failed


def test_no_name_in_a_url_is_an_error_of_the_service(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    requests = [(method, path) for path, methods in paths.items() for method in methods]
    for name in NAMES:
        for method, path in requests:
            url = re.sub(r"\{[a-z_]+\}", name, path)
            answer = client.request(method, url, params={"limit": name, "after": name})
            assert answer.status_code < 500, (method, url[:80])


def test_a_scraper_with_a_strange_version_gets_metrics(client: TestClient) -> None:
    for version in ("x", "", "9" * 5000, "1.x"):
        accept = f"application/openmetrics-text; version={version}"
        answer = client.get("/metrics", headers={"accept": accept})
        assert answer.status_code == 200
        assert "sleb_kv_cache_usage_perc" in answer.text


@pytest.mark.parametrize("value", [HUGE, -HUGE, float("nan"), float("inf")])
@pytest.mark.parametrize("param", ["max_new_tokens", "temperature", "top_p", "top_k", "seed"])
def test_a_sampling_parameter_of_any_size_is_refused_briefly(param: str, value: float) -> None:
    params: dict[str, Any] = {param: value}
    with pytest.raises(InvalidSampling) as refused:
        SamplingParams(**params)
    assert len(str(refused.value)) < 200
