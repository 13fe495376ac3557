"""How much one request may bring: each limit is kept to the item, and no sooner."""

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.api.schemas.compare import MAX_MODELS, MAX_REPEATS, CompareBody
from app.api.schemas.generate import MAX_PROMPTS, GenerateBody
from app.api.schemas.jobs import PruneJobBody
from app.api.schemas.openai import MAX_CHOICES, ChatBody, CompletionBody
from app.api.schemas.sampling import TokenIds
from pruning.spec.calibration import MAX_SOURCES

GENERATE: dict[str, Any] = {"model": "tiny", "prompt": "a"}
COMPARE: dict[str, Any] = {"models": ["tiny", "tiny@-1"], "prompt": "a", "repeats": 1}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
JOB: dict[str, Any] = {"model": "tiny", "num_remove": 1}
TEXT: dict[str, Any] = {"dataset": "code"}


def metadata(num_pairs: int, key_length: int = 3, value_length: int = 1) -> dict[str, str]:
    return {f"{number:0{key_length}}": "a" * value_length for number in range(num_pairs)}


# the body, a good one, the field, the most that it may be, and a little more
LIMITS: list[tuple[type[BaseModel], dict[str, Any], str, Any, Any]] = [
    (GenerateBody, GENERATE, "prompt", ["a"] * MAX_PROMPTS, ["a"] * (MAX_PROMPTS + 1)),
    (GenerateBody, GENERATE, "model", "a" * 256, "a" * 257),
    (GenerateBody, GENERATE, "stop", "a" * 256, "a" * 257),
    (GenerateBody, GENERATE, "stop", ["a" * 256] * 16, ["a"] * 17),
    (GenerateBody, GENERATE, "stop", ["a" * 256], ["a" * 257]),
    (GenerateBody, GENERATE, "stop_token_ids", [1] * 256, [1] * 257),
    (GenerateBody, GENERATE, "logprobs", 20, 21),
    (CompletionBody, GENERATE, "prompt", ["a"] * MAX_PROMPTS, ["a"] * (MAX_PROMPTS + 1)),
    (CompletionBody, GENERATE, "prompt", [[1]] * MAX_PROMPTS, [[1]] * (MAX_PROMPTS + 1)),
    (CompletionBody, GENERATE, "prompt", [2**32 - 1], [2**32]),
    (CompletionBody, GENERATE, "n", MAX_CHOICES, MAX_CHOICES + 1),
    (CompletionBody, GENERATE, "logprobs", 5, 6),
    (CompletionBody, GENERATE, "stop", ["a" * 256] * 16, ["a"] * 17),
    (ChatBody, CHAT, "n", MAX_CHOICES, MAX_CHOICES + 1),
    (CompareBody, COMPARE, "models", ["tiny"] * MAX_MODELS, ["tiny"] * (MAX_MODELS + 1)),
    (CompareBody, COMPARE, "repeats", MAX_REPEATS, MAX_REPEATS + 1),
    (PruneJobBody, JOB, "metadata", metadata(16), metadata(17)),
    (PruneJobBody, JOB, "metadata", metadata(1, key_length=64), metadata(1, key_length=65)),
    (PruneJobBody, JOB, "metadata", metadata(1, value_length=512), metadata(1, value_length=513)),
    (PruneJobBody, JOB, "calibration", [TEXT] * MAX_SOURCES, [TEXT] * (MAX_SOURCES + 1)),
    (PruneJobBody, JOB, "calibration", {"path": "a" * 4096}, {"path": "a" * 4097}),
    (PruneJobBody, JOB, "priority", 100, 101),
]


@pytest.mark.parametrize(("body", "good", "field", "most", "more"), LIMITS)
def test_a_request_brings_so_much_and_no_more(
    body: type[BaseModel], good: dict[str, Any], field: str, most: Any, more: Any
) -> None:
    body.model_validate({**good, field: most})
    with pytest.raises(ValidationError) as refused:
        body.model_validate({**good, field: more})
    assert {each["loc"][:1] for each in refused.value.errors()} <= {(), (field,)}


def test_many_mistakes_are_one_error() -> None:
    """A body has room for a million of them, and each error takes the time of one."""
    unknown = {**GENERATE, **{f"field{number}": 1 for number in range(10_000)}}
    wrong_ids = {**GENERATE, "prompt": ["a", *[-1] * 10_000]}
    for body, given in ((GenerateBody, unknown), (CompletionBody, unknown)):
        with pytest.raises(ValidationError, match="expected at most") as refused:
            body.model_validate(given)
        assert refused.value.error_count() == 1
    with pytest.raises(ValidationError) as refused:
        CompletionBody.model_validate(wrong_ids)
    assert refused.value.error_count() == 1
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(TokenIds).validate_python([-1] * 10_000)
    assert refused.value.error_count() == 1
