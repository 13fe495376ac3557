"""Grammars of response formats, and masks of the tokens that they allow next, by llguidance.

A grammar is compiled once for a tokenizer. Each sequence has a matcher of its own.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pruning.cpus import usable_cpus

MAX_SCHEMA_CHARS = 65_536
MAX_PATTERN_REPEATS = 10_000  # (a{100}){100}; the time of a mask grows with it
_MAX_MESSAGE_CHARS = 300
_NO_DETAILS = "<non-verbose/>"  # of llguidance, for verbose_errors=False
# Without a limit, a model may continue with white space for ever. Unknown keywords are errors.
_JSON: Any = {
    "whitespace_pattern": r"[ \n\r\t]{1,32}",
    "lenient": False,
    "coerce_one_of": False,
}
_JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],:]', re.DOTALL)
_PATTERN_PARTS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]|\{([0-9]+)(?:,([0-9]*))?\}|.", re.DOTALL
)


class ResponseFormatRefused(ValueError):
    """The response format cannot be enforced: the schema, or the tokenizer, does not allow it."""

    param = "response_format"


class Grammar:
    """A compiled schema, for the tokens of one model."""

    def __init__(self, schema: str, tokens: LLTokenizer) -> None:
        """Takes up to seconds. Raises ``ResponseFormatRefused``."""
        _check_size(schema)
        try:
            source = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
        except ValueError as error:
            raise _refused(str(error)) from error
        self._tokens = tokens
        self._matcher = LLMatcher(tokens, source, log_level=0, limits=_limits())
        first = self._matcher.compute_bitmask() if not self._matcher.is_error() else b""
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())
        if not any(first):
            raise _refused("no text fulfils the schema")

    def matcher(self) -> "Matcher":
        return Matcher(self._matcher.deep_copy(), self._tokens)


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
            raise self._refused()

    @property
    def failure(self) -> str | None:
        """Why no further token can be chosen, None if one can."""
        return str(self._refused()) if self.state.is_error() else None

    def _refused(self) -> ResponseFormatRefused:
        pointer = pointer_at_end(self._tokens.decode_str(self._token_ids))
        part = f"the part for {pointer} of the output" if pointer else "the outermost part"
        return _refused(f"{part}: {self.state.get_error()}")


def grammar_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Collection[int]
) -> LLTokenizer:
    """The tokens of a model, as grammars need them. Takes up to seconds.

    Raises ``ResponseFormatRefused`` if they have no texts, or none of them ends a text.
    """
    if not eos_token_ids:
        raise ResponseFormatRefused(
            "the model has no end-of-text token, with which an output by a schema ends: "
            "leave out response_format"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _no_tokens(f"it is a {type(tokenizer).__name__}, and no tokenizer.json")
    try:
        return LLTokenizer(
            tokenizer.backend_tokenizer.to_str(), n_vocab=vocab_size, eos_token=[*eos_token_ids]
        )
    except (ValueError, RuntimeError) as error:
        raise _no_tokens(str(error)) from error


def upper_bounds(
    matchers: Sequence[Matcher], vocab_size: int, device: torch.device
) -> torch.Tensor:
    """Bounds of logits ``[matchers, vocab_size]``: inf for tokens that may follow, else -inf.

    All are computed at once, in threads. No token may follow where a matcher has failed or fails
    now: its own mask would still allow the end of the text.
    """
    masks = torch.zeros(len(matchers), -(-vocab_size // 32), dtype=torch.int32)
    alive = [(one.state, row) for row, one in enumerate(matchers) if not one.state.is_error()]
    if alive:  # an empty list is an error
        _executor().unsafe_compute_mask_ptr(
            alive, masks.data_ptr(), masks.shape[1] * masks.element_size(), len(matchers)
        )
    for state, row in alive:
        if state.is_error():
            masks[row] = 0
    of_bytes = masks.view(torch.uint8).to(device).flatten().int()
    # ten times as fast on a CPU as booleans and masked_fill
    bounds = _bounds_of_bits(device).index_select(0, of_bytes)
    return bounds.view(len(matchers), -1)[:, :vocab_size]


@cache
def _executor() -> LLExecutor:
    return LLExecutor(usable_cpus())


@lru_cache(maxsize=8)
def _bounds_of_bits(device: torch.device) -> torch.Tensor:
    """For each byte, the bounds that its bits mean, from the lowest on ``[256, 8]``."""
    bits = torch.arange(256)[:, None] >> torch.arange(8)
    return torch.where(bits & 1 == 1, torch.inf, -torch.inf).to(device)


def _limits() -> LLParserLimits:
    """A mask takes some 20 ms and a matcher some 40 MB at most, whatever the schema is."""
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=20_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _check_size(schema: str) -> None:
    if len(schema) > MAX_SCHEMA_CHARS:
        raise _refused(f"it has {len(schema)} characters, and {MAX_SCHEMA_CHARS} are the limit")
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _refused(str(error)) from error
    for pattern in _patterns(found):
        if num_repeats(pattern) > MAX_PATTERN_REPEATS:
            raise _refused(
                f"the repetitions of the pattern {pattern[:80]!r} make more than "
                f"{MAX_PATTERN_REPEATS} copies of a part"
            )


def _patterns(schema: object) -> list[str]:
    """All that may be patterns in a schema, those of properties included."""
    found: list[str] = []
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            pattern, named = part.get("pattern"), part.get("patternProperties")
            found += [pattern] if isinstance(pattern, str) else []
            found += named if isinstance(named, Mapping) else []
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


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


def _refused(reason: str) -> ResponseFormatRefused:
    lines = (line.strip() for line in reason.splitlines())
    told = " ".join(line for line in lines if line.strip("^ ") and line != _NO_DETAILS)
    return ResponseFormatRefused(
        f"this schema cannot be enforced: {told[:_MAX_MESSAGE_CHARS]}; simplify it"
    )


def _no_tokens(reason: str) -> ResponseFormatRefused:
    return ResponseFormatRefused(
        f"the tokenizer of the model does not tell the bytes of its tokens, which a schema needs: "
        f"{reason[:_MAX_MESSAGE_CHARS]}; leave out response_format"
    )
