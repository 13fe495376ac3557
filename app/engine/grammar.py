"""Grammars of response formats, by llguidance: which texts are allowed, and which tokens come next.

The process that checks schemas imports this module, so it imports neither torch nor transformers.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

MAX_SCHEMA_CHARS = 65_536
JSON_OF_SCHEMA = "JSON_OF_SCHEMA"  # in a grammar that has such a text as a part
_TRIED_TOKENS = 16
# A mask takes some 20 ms and a matcher some 40 MB at most, whatever the schema is.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=20_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
MAX_PATTERN_REPEATS = 10_000  # (a{100}){100}; the time of a mask grows with it
_MAX_MESSAGE_CHARS = 300
_SOURCE_LINE = re.compile(r"\d+ \| ")  # of a grammar that a schema is within
_NO_DETAILS = "<non-verbose/>"  # of llguidance, for verbose_errors=False
# Without a limit, a model may continue with white space for ever. Unknown keywords are errors.
_JSON: Any = {
    "whitespace_pattern": r"[ \n\r\t]{1,32}",
    "lenient": False,
    "coerce_one_of": False,
}
_COUNTS = frozenset(
    f"{end}{of}" for end in ("min", "max") for of in ("Items", "Length", "Properties", "Contains")
)
# keywords whose value is a schema or a list of them, and those with schemas by name
_SCHEMAS = frozenset(
    {"additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "else", "if", "items"}
    | {"not", "oneOf", "prefixItems", "propertyNames", "then"}
)
_NAMED_SCHEMAS = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)
_JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],:]', re.DOTALL)
_PATTERN_PARTS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]|\{([0-9]+)(?:,([0-9]*))?\}|.", re.DOTALL
)


class ResponseFormatRefused(ValueError):
    """The response format cannot be enforced: the schema, or the tokenizer, does not allow it."""

    def __init__(self, message: str, param: str = "response_format", what: str = "schema") -> None:
        super().__init__(message.replace("response_format", param).replace("schema", what))
        self.param = param


def grammar_source(schema: str, within: str = "", kind: str = "json_schema") -> str:
    """What llguidance compiles for this schema, whose text may be a part of another grammar.

    With another ``kind`` it is no schema but a regex, a JSON list of texts to choose from, or a
    grammar. It may be made to take long, here and when the source is compiled. Raises
    ``ResponseFormatRefused``.
    """
    if (read := _READ.get(kind)) is not None:
        _check_length(schema)
        if kind != "choice":  # whose texts are no patterns
            _check_repeats(schema)
        try:
            return str(read(schema))
        except Exception as error:  # the reader of GBNF raises it as it is
            raise schema_refused(str(error)) from error
    normalized = _normalized(schema)
    try:
        if within:
            part = json.dumps({**json.loads(normalized), "x-guidance": _JSON})
            return str(LLMatcher.grammar_from_lark(within.replace(JSON_OF_SCHEMA, f"%json {part}")))
        source = LLMatcher.grammar_from_json_schema(normalized, overrides=_JSON)
    except ValueError as error:
        raise schema_refused(str(error)) from error
    return str(source)


def _choice_source(choice: str) -> str:
    texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(choice))
    return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}"))


_READ: Mapping[str, Callable[[str], str]] = {
    "regex": LLMatcher.grammar_from_regex,
    "choice": _choice_source,
    "grammar": lambda grammar: LLMatcher.grammar_from_lark(any_to_lark(grammar)),
}


class Grammar:
    """A compiled schema, for the tokens of one model.

    Its matchers share what llguidance computes lazily: if one exceeds the limits of that, all do.
    So each request has a grammar of its own.
    """

    def __init__(self, source: str, tokens: LLTokenizer) -> None:
        """Raises ``ResponseFormatRefused``."""
        self._tokens = tokens
        self._matcher = LLMatcher(tokens, source, log_level=0, limits=_LIMITS)
        first = self._matcher.compute_bitmask() if not self._matcher.is_error() else b""
        if self._matcher.is_error():
            raise schema_refused(self._matcher.get_error())
        if not any(first):
            raise schema_refused("no text matches the schema")

    def matcher(self) -> "Matcher":
        return Matcher(self._matcher.deep_copy(), self._tokens)

    def try_out(self) -> None:
        """Begin a text. Raises ``ResponseFormatRefused`` if the grammar cannot go on within it.

        A grammar that fails takes up to 20 ms in a step of the engine, for which others wait.
        """
        matcher = self.matcher()
        for _ in range(_TRIED_TOKENS):
            allowed = int.from_bytes(matcher.state.compute_bitmask(), "little")
            if matcher.failure is not None:
                raise ResponseFormatRefused(matcher.failure)
            if not allowed or matcher.state.is_stopped():
                return
            matcher.advance((allowed & -allowed).bit_length() - 1)  # the first one


class Matcher:
    """The state of one sequence in its grammar, which says which tokens may come next."""

    def __init__(self, state: LLMatcher, tokens: LLTokenizer) -> None:
        self.state = state
        self._tokens = tokens
        self._token_ids: list[int] = []

    def advance(self, token_id: int) -> None:
        """Raises ``ResponseFormatRefused`` if the grammar cannot go on."""
        self._token_ids.append(token_id)
        if not self.state.consume_token(token_id):
            raise self._refusal()

    @property
    def failure(self) -> str | None:
        """Why no further token can be chosen, None if one can."""
        return str(self._refusal()) if self.state.is_error() else None

    def _refusal(self) -> ResponseFormatRefused:
        pointer = pointer_at_end(self._tokens.decode_str(self._token_ids))
        part = f"the part for {pointer} of the output" if pointer else "the top level"
        return schema_refused(f"{part}: {self.state.get_error()}")


def grammar_tokens(tokenizer: str, vocab_size: int, eos_token_ids: Collection[int]) -> LLTokenizer:
    """The tokens of a model, as grammars need them, from the text of its ``tokenizer.json``.

    Holds the interpreter's lock, for 1.5 s of 262,000 tokens. Raises ``ResponseFormatRefused`` if
    they have no texts, or none of them ends a text.
    """
    if not eos_token_ids:
        raise ResponseFormatRefused(
            "the model has no end-of-text token, which a response_format needs: remove "
            "response_format"
        )
    try:
        return LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=[*eos_token_ids])
    except (ValueError, RuntimeError) as error:
        raise no_tokens(str(error)) from error


def _normalized(schema: str) -> str:
    """The schema as llguidance reads it. Raises ``ResponseFormatRefused``."""
    _check_length(schema)
    try:
        parsed = json.loads(schema)
    except RecursionError as error:
        raise schema_refused("it is nested too deeply") from error
    except ValueError as error:
        raise schema_refused(f"it is not JSON: {error}") from error
    for pattern in _patterns(parsed):
        _check_repeats(pattern)
    _simplify(parsed)
    return json.dumps(parsed)


def _check_length(text: str) -> None:
    if len(text) > MAX_SCHEMA_CHARS:
        raise schema_refused(
            f"it has {len(text)} characters, more than the limit of {MAX_SCHEMA_CHARS}"
        )


def _check_repeats(pattern: str) -> None:
    if num_repeats(pattern) > MAX_PATTERN_REPEATS:
        raise schema_refused(
            f"the pattern {pattern[:80]!r} has repetitions that expand to more than "
            f"{MAX_PATTERN_REPEATS} copies"
        )


def _simplify(schema: object) -> None:
    """Replace, in all schemas within this one, what llguidance refuses but can express."""
    left = [schema]
    while left:
        part = left.pop()
        if not isinstance(part, dict):
            continue
        for keyword in _COUNTS & part.keys():
            if isinstance(count := part[keyword], float) and count.is_integer():
                part[keyword] = int(count)
        if part.get("uniqueItems") is False:  # as if it were left out
            del part["uniqueItems"]
        left += _inner_schemas(part)


def _inner_schemas(schema: Mapping[str, Any]) -> list[Any]:
    schemas: list[Any] = []
    for keyword in _SCHEMAS & schema.keys():
        inner = schema[keyword]
        schemas += inner if isinstance(inner, list) else [inner]
    for keyword in _NAMED_SCHEMAS & schema.keys():
        schemas += named.values() if isinstance(named := schema[keyword], dict) else []
    return schemas


def _patterns(schema: object) -> list[str]:
    """All that may be patterns in a schema, those of properties included."""
    patterns: list[str] = []
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            pattern, named = part.get("pattern"), part.get("patternProperties")
            patterns += [pattern] if isinstance(pattern, str) else []
            patterns += named if isinstance(named, Mapping) else []
            left += part.values()
        elif isinstance(part, list):
            left += part
    return patterns


def num_repeats(pattern: str) -> float:
    """The most copies that counted repetitions, within each other, make of a part of a pattern."""
    most, last = [1.0], 1.0  # in each open group, and of the last part
    for part in _PATTERN_PARTS.finditer(pattern):
        if part[1] is not None:
            last *= max(float(part[1]), float(part[2] or 0))
        elif part[0] == ")" and len(most) > 1:
            last = most.pop()
        else:
            last = 1.0
        if part[0] == "(":
            most.append(1.0)
        most[-1] = max(most[-1], last)
    return max(most)


def pointer_at_end(text: str) -> str:
    """The JSON pointer of the value with which this beginning of a JSON text ends."""
    path: list[str | int | None] = []  # the index in each open array, the key in each object
    last = ""
    for part in _JSON_PARTS.findall(text):
        if part in ("{", "["):
            path.append(None if part == "{" else 0)
        elif part in ("}", "]") and path:
            path.pop()
        elif part == "," and path and isinstance(index := path[-1], int):
            path[-1] = index + 1
        elif part == ":" and path:
            path[-1] = last[1:-1].replace("~", "~0").replace("/", "~1")
        last = part
    return "".join(f"/{part}" for part in path if part is not None)


def schema_refused(reason: str) -> ResponseFormatRefused:
    lines = (line.strip() for line in reason.splitlines())
    said = (line for line in lines if line.strip("^ ") and line != _NO_DETAILS)
    reason = " ".join(line for line in said if not _SOURCE_LINE.match(line))
    reason = reason.rpartition("failed to compile JSON schema: ")[2]
    if "'coerce_one_of'" in reason:  # an option of llguidance that no request can set
        reason = "oneOf requires schemas that exclude each other: use anyOf"
    return ResponseFormatRefused(
        f"the schema cannot be enforced: {reason[:_MAX_MESSAGE_CHARS]}; simplify it"
    )


def no_tokens(reason: str) -> ResponseFormatRefused:
    return ResponseFormatRefused(
        "response_format is not supported, because the model's tokenizer does not "
        f"provide the bytes of its tokens: {reason[:_MAX_MESSAGE_CHARS]}; remove "
        "response_format"
    )
