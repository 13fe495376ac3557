"""The sampling parameters of request bodies, and the engine's parameters that they become.

Names, defaults and ranges are those of the engine's ``SamplingParams``, which checks the ranges.
Integers are as in JSON, where 5.0 is one.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    WrapValidator,
)

from app.api.schemas.bodies import documented, optional
from app.api.schemas.response_format import AnyFormat, response_format
from app.engine.scheduling.sequence import MAX_LOGIT_BIAS, MAX_TOKEN_ID, RANGES, SamplingParams


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


def _range_of(param: str) -> dict[str, Any]:
    """Of a sampling parameter, as JSON schema has it: to document it, as the engine checks it."""
    low, high = RANGES[param]
    return {"minimum": low, "maximum": high}


def _of_engine(param: str, description: str) -> Any:  # noqa: ANN401 - of any type
    """A field with the default and the range of the engine."""
    return documented(getattr(SamplingParams, param), description, _range_of(param))


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
_NAMES = frozenset(field.name for field in fields(SamplingParams))
_TOP_P: dict[str, Any] = {"exclusiveMinimum": 0, "maximum": 1}


class SamplingFields(BaseModel):
    """Of this project's own routes. Temperature 0 is greedy."""

    max_new_tokens: int = _of_engine("max_new_tokens", "Maximum number of tokens of an output.")
    temperature: float = _of_engine("temperature", "Divides the logits; 0 is greedy decoding.")
    top_p: float = documented(
        SamplingParams.top_p,
        "Samples from the likeliest tokens with this total probability; 1 is off.",
        _TOP_P,
    )
    top_k: int = _of_engine("top_k", "Samples from this many of the likeliest tokens; 0 is off.")
    min_p: float = _of_engine(
        "min_p", "Minimum probability of a token, as a share of the most likely token's."
    )
    repetition_penalty: float = _of_engine(
        "repetition_penalty",
        "Above 1, tokens of the prompt and the output so far become less likely.",
    )
    presence_penalty: float = _of_engine(
        "presence_penalty", "Above 0, tokens of the output so far become less likely."
    )
    frequency_penalty: float = _of_engine(
        "frequency_penalty",
        "Above 0, tokens become less likely with each time they are in the output.",
    )
    logit_bias: LogitBias = Field(
        default_factory=dict, description="Added to the logits of tokens, by token id."
    )
    seed: Seed | None = documented(
        SamplingParams.seed, "Draws the same numbers each time; one is drawn if none is given."
    )
    stop_token_ids: StopTokenIds = Field(
        default_factory=list,
        description="An output ends at any of these tokens, which are not part of its text.",
    )
    ignore_eos: StrictBool = documented(
        SamplingParams.ignore_eos,
        "Continue behind the end-of-text token, up to the maximum length.",
    )
    response_format: AnyFormat | None = optional(
        "What an output must be: any text, a JSON object, or JSON by a schema."
    )
    reproducible: StrictBool = documented(
        SamplingParams.reproducible,
        "Whether the output must not depend on other requests, which takes longer.",
    )


class OpenAISamplingFields(BaseModel):
    """Of the OpenAI routes: strict types, and null for the default. Some fields are vLLM's, one is
    this project's."""

    temperature: Number | None = optional("1 by default; 0 is greedy.", _range_of("temperature"))
    top_p: Number | None = optional(
        "1 by default: samples from the likeliest tokens with this total probability.", _TOP_P
    )
    presence_penalty: Number | None = optional(
        "0 by default; above it, tokens of the output so far become less likely.",
        _range_of("presence_penalty"),
    )
    frequency_penalty: Number | None = optional(
        "0 by default; above it, tokens become less likely with each use.",
        _range_of("frequency_penalty"),
    )
    logit_bias: LogitBias | None = optional("Added to the logits of tokens, by token id.")
    seed: StrictSeed | None = optional(
        "Draws the same numbers each time; one is drawn if none is given."
    )
    response_format: AnyFormat | None = optional(
        "What an output must be: any text, a JSON object, or JSON by a schema."
    )

    # vLLM's
    top_k: TopK | None = optional("0 and -1 are off.")
    min_p: Number | None = optional(
        "Minimum probability of a token, as a share of the likeliest one's; 0: off.",
        _range_of("min_p"),
    )
    repetition_penalty: Number | None = optional(
        "1 by default; above it, tokens of prompt and output become less likely.",
        _range_of("repetition_penalty"),
    )
    stop_token_ids: StopTokenIds | None = optional("An output ends at any of these tokens.")
    ignore_eos: StrictBool | None = optional(
        "Continue behind the end-of-text token, up to the maximum length."
    )

    # this project's
    reproducible: StrictBool | None = optional(
        "Whether the output must not depend on other requests, which takes longer."
    )


def sampling_params(
    body: SamplingFields | OpenAISamplingFields, **overrides: object
) -> SamplingParams:
    """Return the parameters that the body gives, and the ``overrides``.

    Raises ``InvalidSampling`` or ``ResponseFormatRefused``.
    """
    settings: dict[str, Any] = {
        name: value for name, value in body if name in _NAMES and value is not None
    }
    settings |= overrides
    settings["logit_bias"] = tuple(
        (int(token_id), bias) for token_id, bias in settings.get("logit_bias", {}).items()
    )
    settings["response_format"] = response_format(body.response_format)
    settings["stop_token_ids"] = frozenset(settings.get("stop_token_ids", ()))
    return SamplingParams(**settings)
