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
from app.api.schemas.response_format import AnyFormat, StructuredOutputs, response_format
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
    """Sampling parameters of this project's own routes. Temperature 0 means greedy decoding."""

    max_new_tokens: int = _of_engine("max_new_tokens", "Maximum number of new tokens.")
    temperature: float = _of_engine("temperature", "Sampling temperature; 0 means greedy decoding.")
    top_p: float = documented(
        SamplingParams.top_p,
        "Sample from the most likely tokens with this cumulative probability; 1 disables it.",
        _TOP_P,
    )
    top_k: int = _of_engine(
        "top_k", "Sample from this many of the most likely tokens; 0 disables it."
    )
    min_p: float = _of_engine(
        "min_p", "Minimum probability of a token, relative to the most likely token."
    )
    repetition_penalty: float = _of_engine(
        "repetition_penalty",
        "Values above 1 penalize tokens in the prompt and the output so far.",
    )
    presence_penalty: float = _of_engine(
        "presence_penalty", "Values above 0 penalize tokens that occur in the output so far."
    )
    frequency_penalty: float = _of_engine(
        "frequency_penalty",
        "Values above 0 penalize tokens by their frequency in the output so far.",
    )
    logit_bias: LogitBias = Field(
        default_factory=dict, description="Bias added to the logits, by token id."
    )
    seed: Seed | None = documented(
        SamplingParams.seed, "Random seed; drawn at random if none is given."
    )
    stop_token_ids: StopTokenIds = Field(
        default_factory=list,
        description="Token ids that end an output; they are not part of its text.",
    )
    ignore_eos: StrictBool = documented(
        SamplingParams.ignore_eos,
        "Continue after the end-of-text token, up to the maximum length.",
    )
    response_format: AnyFormat | None = optional(
        "Format of the output: any text, a JSON object, or JSON that matches a schema."
    )
    reproducible: StrictBool = documented(
        SamplingParams.reproducible,
        "Make the output independent of other requests, which takes longer.",
    )


class OpenAISamplingFields(BaseModel):
    """Sampling parameters of the OpenAI routes: strict types, and null means the default. Some
    fields are as in vLLM, one is specific to this project.
    """

    temperature: Number | None = optional(
        "Sampling temperature, 1 by default; 0 means greedy decoding.", _range_of("temperature")
    )
    top_p: Number | None = optional(
        "Sample from the most likely tokens with this cumulative probability; 1 by default.", _TOP_P
    )
    presence_penalty: Number | None = optional(
        "Values above 0 penalize tokens that occur in the output so far; 0 by default.",
        _range_of("presence_penalty"),
    )
    frequency_penalty: Number | None = optional(
        "Values above 0 penalize tokens by their frequency in the output so far; 0 by default.",
        _range_of("frequency_penalty"),
    )
    logit_bias: LogitBias | None = optional("Bias added to the logits, by token id.")
    seed: StrictSeed | None = optional("Random seed; drawn at random if none is given.")
    response_format: AnyFormat | None = optional(
        "Format of the output: any text, a JSON object, or JSON that matches a schema."
    )

    # vLLM's
    structured_outputs: StructuredOutputs | None = optional(
        "Format of the output, in place of response_format."
    )
    top_k: TopK | None = optional(
        "Sample from this many of the most likely tokens; 0 and -1 disable it."
    )
    min_p: Number | None = optional(
        "Minimum probability of a token, relative to the most likely token; 0 disables it.",
        _range_of("min_p"),
    )
    repetition_penalty: Number | None = optional(
        "Values above 1 penalize tokens in the prompt and the output so far; 1 by default.",
        _range_of("repetition_penalty"),
    )
    stop_token_ids: StopTokenIds | None = optional("Token ids that end an output.")
    ignore_eos: StrictBool | None = optional(
        "Continue after the end-of-text token, up to the maximum length."
    )

    # this project's
    reproducible: StrictBool | None = optional(
        "Make the output independent of other requests, which takes longer."
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
    settings["response_format"] = response_format(
        body.response_format, getattr(body, "structured_outputs", None)
    )
    settings["stop_token_ids"] = frozenset(settings.get("stop_token_ids", ()))
    return SamplingParams(**settings)
