"""Numbers in request bodies, and their ranges. Integers are as in JSON, where 5.0 is one."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, WrapValidator

from app.engine.scheduling.sequence import MAX_LOGIT_BIAS, MAX_TOKEN_ID, RANGES


def integer(value: object) -> object:
    """A number without a fraction is an integer in JSON, as in 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(integer)
Integer = Annotated[int, Field(strict=True), WHOLE]
Number = Annotated[float, Field(strict=True)]
MAX_WRITTEN_AS_FLOATS = 100_000
# Beyond any vocabulary. Tokenizers raise for larger numbers when a prompt is echoed.
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


def _integers(items: object, handler: Callable[[object], object]) -> object:
    """Integers may be written as 5.0. That is rare, and costs time if there are a million."""
    try:
        return handler(items)
    except ValidationError:
        if isinstance(items, list) and len(items) <= MAX_WRITTEN_AS_FLOATS:
            return handler([integer(value) for value in items])
        raise


# the first wrong one of a million is enough: an error for each would take seconds
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), WrapValidator(_integers)]

MAX_BIASES = 1024


def range_of(param: str) -> dict[str, Any]:
    """Of a sampling parameter, as JSON schema has it: to document it, as the engine checks it."""
    low, high = RANGES[param]
    return {"minimum": low, "maximum": high}


TokenIdKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(strict=True, ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
LogitBias = Annotated[
    dict[TokenIdKey, Bias],
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
StopTokenId = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_TOKEN_ID})]
StopTokenIds = Annotated[list[StopTokenId], Field(max_length=256)]
# The last one that is also a double, as which many readers of JSON compare it
_SEEDS: dict[str, Any] = {"minimum": 0, "maximum": 2**63 - 1024}
Seed = Annotated[int, Field(json_schema_extra=_SEEDS)]
StrictSeed = Annotated[Integer, Field(json_schema_extra=_SEEDS)]
TopK = Annotated[
    int, Field(strict=True, ge=-1, json_schema_extra={"maximum": RANGES["top_k"][1]}), WHOLE
]
TOP_P: dict[str, Any] = {"exclusiveMinimum": 0, "maximum": 1}
