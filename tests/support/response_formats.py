"""Schemas for tests of response formats, and the requests and grammars of them."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from llguidance import LLTokenizer

from app.engine.grammar import Grammar, grammar_source, grammar_tokens
from app.engine.scheduling.sequence import Request, ResponseFormat, SamplingParams
from app.engine.variant import Variant
from tests.support.tiny_directory import tiny_tokenizer

PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Rome", "naïve", "数学"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a request body."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@cache
def tiny_tokens(eos: int = 1) -> LLTokenizer:
    tokenizer = tiny_tokenizer()
    return grammar_tokens(tokenizer.backend_tokenizer.to_str(), len(tokenizer), {eos})


def tiny_grammar(schema: str) -> Grammar:
    return Grammar(grammar_source(schema), tiny_tokens())


def constrained(
    schema: Mapping[str, Any], of: Variant, prompt_ids: tuple[int, ...], name: str, **params: Any
) -> Request:
    text = json.dumps(schema)
    wanted = SamplingParams(response_format=ResponseFormat("json_schema", text), **params)
    return Request(name, of, prompt_ids, wanted, grammar=tiny_grammar(text))
