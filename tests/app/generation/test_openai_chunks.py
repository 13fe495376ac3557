"""Whatever a server streams is a chunk, or refused with a ``ValueError``."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.scheduling.sequence import FinishReason
from app.generation.openai_chunks import Chunk, ChunkReader, ChunkRefused, Usage
from app.generation.output import Spelling

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = ["choices", "usage", "error", "text", "delta", "content", "logprobs", "tokens"]
NAMES += ["token_logprobs", "top_logprobs", "finish_reason", "prompt_tokens", "completion_tokens"]
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.text() | VALUES.map(json.dumps))
def test_anything_is_a_chunk_or_refused(data: str) -> None:
    with suppress(ValueError):
        assert isinstance(ChunkReader().read(data), Chunk)


def chunk(reader: ChunkReader, **choice: Any) -> Chunk:
    return reader.read(json.dumps({"choices": [choice]}))


@given(st.lists(st.text(max_size=8), max_size=6))
def test_texts_are_passed_on_as_they_come_and_tokens_have_their_places(texts: list[str]) -> None:
    reader, so_far = ChunkReader(), ""
    for text in texts:
        tokens = [text[:3], text[3:]]
        logprobs = {"tokens": tokens, "token_logprobs": [-0.5, None], "top_logprobs": None}
        found = chunk(reader, text=text, logprobs=logprobs)
        assert found.text == text
        assert [token.offset for token in found.tokens] == [len(so_far), len(so_far + tokens[0])]
        assert [token.logprob for token in found.tokens] == [-0.5, None]
        so_far += text


@pytest.mark.parametrize(
    ("told", "expected"),
    [([7, 7], [7, 7]), ([0, 1], [7, 8]), ([-1, -1], [7, 8]), ([7], [7, 8]), (None, [7, 8])],
)
def test_places_are_those_that_are_told_if_they_can_be(
    told: list[int] | None, expected: list[int]
) -> None:
    reader = ChunkReader()
    chunk(reader, text="before ")
    logprobs = {"tokens": ["\ufffd", "b"], "token_logprobs": [-1, -1], "text_offset": told}
    tokens = chunk(reader, text="xb", logprobs=logprobs).tokens
    assert [token.offset for token in tokens] == expected


BEST = {"token": "a", "logprob": -1, "bytes": [97]}
CHOICES: list[dict[str, Any]] = [
    {
        "text": "a",
        "logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"b": -2, "a": -1}]},
    },
    {
        "delta": {"content": "a"},
        "logprobs": {
            "content": [{**BEST, "top_logprobs": [BEST, {"token": "b", "logprob": -2}]}],
        },
    },
]


@pytest.mark.parametrize("choice", CHOICES, ids=["completion", "chat"])
def test_both_kinds_of_log_probabilities_are_read(choice: dict[str, Any]) -> None:
    best, other = (Spelling("a", b"a"), -1), (Spelling("b", b"b"), -2)
    found = chunk(ChunkReader(), **choice)
    assert found.text == "a"
    [token] = found.tokens
    assert [(token.key, token.logprob), *token.top_logprobs] == [best, best, other]


def test_half_a_character_has_the_bytes_that_are_told() -> None:
    half: dict[str, Any] = {"content": [{"token": "\ufffd", "logprob": -1, "bytes": [240]}]}
    assert chunk(ChunkReader(), logprobs=half).tokens[0].key == Spelling("\ufffd", b"\xf0")
    half = {"tokens": ["\ufffd"], "token_logprobs": [-1]}
    assert chunk(ChunkReader(), logprobs=half).tokens[0].key == Spelling("\ufffd", None)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("length", FinishReason.LENGTH),
        ("stop", FinishReason.STOP),
        ("content_filter", FinishReason.STOP),
        (None, None),
    ],
)
def test_ends_are_read(told: str | None, reason: FinishReason | None) -> None:
    assert chunk(ChunkReader(), text="", finish_reason=told).finish_reason is reason


def test_usage_is_read_and_errors_are_refused() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "more": {}}
    found = ChunkReader().read(json.dumps({"choices": [], "usage": usage}))
    assert found == Chunk("", (), None, Usage(prompt_tokens=3, completion_tokens=4))
    refused: list[dict[str, Any]] = [
        {"error": "x"},
        {"choices": [{"finish_reason": "abort"}]},
    ]
    for bad in refused:
        with pytest.raises(ChunkRefused):
            ChunkReader().read(json.dumps(bad))
