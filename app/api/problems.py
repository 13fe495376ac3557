"""OpenAI's envelope for errors, made of this project's problem documents."""

import re
from collections.abc import Mapping
from typing import Any

# What clients look for, where it is not the type of the problem in other letters.
_CODES: Mapping[str, str | None] = {
    "invalid-request": None,
    "overloaded": "rate_limit_exceeded",
    "key-limit-reached": "rate_limit_exceeded",
    "prompt-too-long": "context_length_exceeded",
}
_ABOUT_THE_PROMPT = ("prompt-too-long", "request-refused", "no-chat-template")
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def is_openai(path: str) -> bool:
    """Whether what asks for this path is a client of OpenAI's API."""
    return path.startswith("/v1/")


def envelope(problem: Mapping[str, Any], path: str = "") -> tuple[int, dict[str, Any]]:
    """Status and body; what is 422 elsewhere is 400 here."""
    status: int = 400 if problem["status"] == 422 else problem["status"]
    kind, message = str(problem["type"]), problem.get("detail") or problem["title"]
    param = problem.get("param") or _param_of(kind, path)
    if errors := problem.get("errors"):
        param = _name_of(errors[0]["pointer"]) or None
        message = ": ".join(filter(None, [param, errors[0]["detail"]]))
    error = {
        "message": message,
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": param,
        "code": None if kind.startswith("http-") else _CODES.get(kind, kind.replace("-", "_")),
    }
    return status, {"error": error}


def _param_of(kind: str, path: str) -> str | None:
    if kind == "model-not-found":
        return "model"
    if kind in _ABOUT_THE_PROMPT:
        return "messages" if "/chat/" in path else "prompt"
    return None


def _name_of(pointer: str) -> str:
    """``/messages/0/content`` as OpenAI writes it: ``messages[0].content``."""
    return re.sub(r"\.([0-9]+)(?=\.|$)", r"[\1]", pointer.strip("/").replace("/", "."))
