"""The OpenAPI document, where FastAPI cannot derive it: problem responses, scopes, examples."""

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from app.api.errors import INVALID_TITLE, PROBLEMS
from app.api.problems import TOO_LARGE_TITLE, is_openai
from app.auth.audit import AuditUnavailable, is_probe
from app.auth.keys import KeyRefused, ScopeMissing
from app.auth.limits import LimitReached, TokenQuotaReached
from app.auth.scopes import Authorizer, NotLocal, generates, scopes_for
from app.auth.sessions import NotSameOrigin

Responses = dict[int | str, dict[str, Any]]

_TEXT = {"type": "string"}
# the content of a response that is a stream of server-sent events, as OpenAPI 3.2 describes it
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
_DOCUMENT = {"$ref": "#/components/schemas/Problem"}
_PROBLEM = {
    "title": "Problem",
    "type": "object",
    "properties": {
        "title": {**_TEXT, "description": "Short description of the kind of problem."},
        "type": {
            **_TEXT,
            "description": "Stable identifier of the kind of problem.",
        },
        "status": {"type": "integer", "description": "HTTP status of the response."},
        "detail": {**_TEXT, "description": "What was wrong, what was expected, and what to do."},
    },
    "required": ["type", "title", "status"],
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_SCHEME = "bearer"

_MODEL, _PROMPT = "smollm2-135m", "The sea is"
# what a client sends first, with the demo model, by the name of the body's schema
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "AliasBody": {"target": f"{_MODEL}@-3"},
    "ChatBody": {"model": _MODEL, "messages": [{"role": "user", "content": "What is the sea?"}]},
    "CompareBody": {"models": [_MODEL, f"{_MODEL}@-3"], "prompt": _PROMPT, "repeats": 5},
    "CompletionBody": {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 32},
    "DetokenizeBody": {"model": _MODEL, "tokens": [504, 4711]},
    "EvalBody": {"model": f"{_MODEL}@-3", "num_windows": 16},
    "FrontierBody": {"model": _MODEL, "loads": ["stream", "8"], "max_minutes": 10},
    "GenerateBody": {"model": _MODEL, "prompt": _PROMPT, "max_new_tokens": 32},
    "HealJobBody": {"model": f"{_MODEL}@JOB_ID", "heal": {"num_tokens": 500_000}},
    "PruneJobBody": {"model": _MODEL, "num_remove": 3},
    "RetryJobBody": {"repair": "none"},
    "SignInBody": {"key": "sleb_…"},
    "TokenizeBody": {"model": _MODEL, "prompt": _PROMPT},
}

_UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")
_CHALLENGE = {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}}}


def responses_for(*errors: type[Exception], has_body: bool = False) -> Responses:
    """Describe the responses to these errors, and to any invalid request, by status."""
    rows = [(*PROBLEMS[error], hasattr(error, "retry_after_s")) for error in errors]
    rows += [(422, "", INVALID_TITLE, False)]
    if has_body:
        rows += [(400, "", "The request body cannot be decoded.", False)]
        rows += [(413, "", TOO_LARGE_TITLE, False)]
    responses: Responses = {}
    for status, _type, title, has_retry_after in rows:
        content = {"application/problem+json": {"schema": _DOCUMENT}}
        response = responses.setdefault(status, {"description": title, "content": content})
        if title not in response["description"]:
            response["description"] += f" {title}"
        if has_retry_after or status in (429, 503):
            response["headers"] = _RETRY_AFTER
    return responses


def describe_api(app: FastAPI, authorizer: Authorizer, *, is_audited: bool = False) -> None:
    """Correct the document that FastAPI generates, and send it at ``/openapi.json``.

    It is kept as an object and as JSON until keys are required: many requests for it would stop the
    event loop otherwise.
    """
    generate = app.openapi
    kept: dict[tuple[bool, bool], tuple[dict[str, Any], bytes | memoryview]] = {}

    def current() -> tuple[dict[str, Any], bytes | memoryview]:
        access = (authorizer.requires_key, authorizer.is_local)
        if access not in kept:
            document = _described(generate(), authorizer, is_audited=is_audited)
            kept[access] = document, JSONResponse(document).body
        return kept[access]

    async def send() -> Response:
        """Not in a thread unless it has to be made: many of them would keep the loop waiting."""
        is_kept = (authorizer.requires_key, authorizer.is_local) in kept
        _, json = current() if is_kept else await asyncio.to_thread(current)
        return Response(json, media_type="application/json")

    app.openapi = lambda: current()[0]  # type: ignore[method-assign]  # FastAPI's way
    app.add_api_route("/openapi.json", send, include_in_schema=False, name="openapi")


def _described(
    generated: dict[str, Any], authorizer: Authorizer, *, is_audited: bool
) -> dict[str, Any]:
    document = deepcopy(generated)  # FastAPI keeps it, and keys may be required later
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            _describe_access(operation, method, path, authorizer)
            if is_audited and not is_probe(path):
                _add(operation["responses"], path, AuditUnavailable)
            if is_openai(path):
                operation["responses"].pop("422", None)  # FastAPI's own, which is 400 there
    _describe_schemas(document["components"]["schemas"])
    if authorizer.requires_key:
        scheme = {"type": "http", "scheme": "bearer", "description": "`sleb keys create`"}
        document["components"].setdefault("securitySchemes", {})[_SCHEME] = scheme
    return document


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter can be omitted, but never null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**kinds[0], **rest}


def _describe_schemas(schemas: dict[str, Any]) -> None:
    for name in _UNUSED_SCHEMAS:
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]


def _describe_access(
    operation: dict[str, Any], method: str, path: str, authorizer: Authorizer
) -> None:
    scopes = scopes_for(method.upper(), path)
    if authorizer.is_local:
        _add(operation["responses"], path, NotLocal)
    elif authorizer.requires_key and scopes is not None:
        operation["security"] = [{_SCHEME: sorted(scopes)}]
        _add(operation["responses"], path, KeyRefused, ScopeMissing, LimitReached)
        if generates(method.upper(), path):
            _add(operation["responses"], path, TokenQuotaReached)
        if method not in ("get", "head"):
            _add(operation["responses"], path, NotSameOrigin)


def _add(responses: dict[str, Any], path: str, *errors: type[Exception]) -> None:
    """Add to the responses of the route, which may use the same statuses for other reasons."""
    for error in errors:
        status = PROBLEMS[error][0]
        response = dict(responses_for(error)[status])
        if error in (KeyRefused, ScopeMissing):
            response["headers"] = _CHALLENGE
        if is_openai(path):
            view = {"$ref": "#/components/schemas/ErrorView"}
            response["content"] = {"application/json": {"schema": view}}
        before = responses.setdefault(str(status), response)
        if before is not response:
            before["description"] += f" {response['description']}"
