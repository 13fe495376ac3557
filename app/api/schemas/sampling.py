"""The sampling parameters of request bodies, and the engine's parameters that they become.

Names, defaults and ranges are those of the engine's ``SamplingParams``, which checks the ranges.
"""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StringConstraints

from app.engine.sequence import MAX_LOGIT_BIAS, SamplingParams

MAX_BIASES = 1024
Number = Annotated[float, Field(strict=True)]
TokenIdKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(strict=True, ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
LogitBias = Annotated[dict[TokenIdKey, Bias], Field(max_length=MAX_BIASES)]
StopTokenIds = Annotated[list[int], Field(max_length=256)]

_NAMES = frozenset(field.name for field in fields(SamplingParams))


class SamplingFields(BaseModel):
    """Of this project's own routes. Temperature 0 is greedy."""

    max_new_tokens: int = Field(
        default=SamplingParams.max_new_tokens, description="Maximum number of tokens of an output."
    )
    temperature: float = Field(
        default=SamplingParams.temperature, description="Divides the logits; 0 is greedy decoding."
    )
    top_p: float = Field(
        default=SamplingParams.top_p,
        description="Samples from the likeliest tokens with this total probability; 1 is off.",
    )
    top_k: int = Field(
        default=SamplingParams.top_k,
        description="Samples from this many of the likeliest tokens; 0 is off.",
    )
    min_p: float = Field(
        default=SamplingParams.min_p,
        description="Minimum probability of a token, as a share of the most likely token's.",
    )
    repetition_penalty: float = Field(
        default=SamplingParams.repetition_penalty,
        description="Above 1, tokens of the prompt and the output so far become less likely.",
    )
    presence_penalty: float = Field(
        default=SamplingParams.presence_penalty,
        description="Above 0, tokens of the output so far become less likely.",
    )
    frequency_penalty: float = Field(
        default=SamplingParams.frequency_penalty,
        description="Above 0, tokens become less likely with each time they are in the output.",
    )
    logit_bias: LogitBias = Field(
        default_factory=dict, description="Added to the logits of tokens, by token id."
    )
    seed: int | None = Field(
        default=SamplingParams.seed,
        description="Makes sampling repeatable; drawn if none is given.",
    )
    stop_token_ids: StopTokenIds = Field(
        default_factory=list,
        description="An output ends at any of these tokens, which are not part of its text.",
    )
    ignore_eos: bool = Field(
        default=SamplingParams.ignore_eos,
        description="Continue behind the end-of-text token, up to the maximum length.",
    )


class OpenAISamplingFields(BaseModel):
    """Of the OpenAI routes: strict types, and null for the default. Some fields are vLLM's."""

    temperature: Number | None = Field(default=None, description="1 by default; 0 is greedy.")
    top_p: Number | None = Field(
        default=None,
        description="1 by default: samples from the likeliest tokens with this total probability.",
    )
    presence_penalty: Number | None = Field(
        default=None,
        description="0 by default; above it, tokens of the output so far become less likely.",
    )
    frequency_penalty: Number | None = Field(
        default=None, description="0 by default; above it, tokens become less likely with each use."
    )
    logit_bias: LogitBias | None = Field(
        default=None, description="Added to the logits of tokens, by token id."
    )
    seed: StrictInt | None = Field(
        default=None, description="Makes sampling repeatable; drawn if none is given."
    )

    # vLLM's
    top_k: StrictInt | None = Field(default=None, ge=-1, description="0 and -1 are off.")
    min_p: Number | None = Field(
        default=None,
        description="Minimum probability of a token, as a share of the likeliest one's; 0: off.",
    )
    repetition_penalty: Number | None = Field(
        default=None,
        description="1 by default; above it, tokens of prompt and output become less likely.",
    )
    stop_token_ids: StopTokenIds | None = Field(
        default=None, description="An output ends at any of these tokens."
    )
    ignore_eos: StrictBool | None = Field(
        default=None, description="Continue behind the end-of-text token, up to the maximum length."
    )


def sampling_params(
    body: SamplingFields | OpenAISamplingFields, **overrides: object
) -> SamplingParams:
    """Return the parameters that the body gives, and the ``overrides``.

    Raises ``InvalidSampling``.
    """
    given: dict[str, Any] = {
        name: value for name, value in body if name in _NAMES and value is not None
    }
    given |= overrides
    given["logit_bias"] = tuple(
        (int(token_id), bias) for token_id, bias in given.get("logit_bias", {}).items()
    )
    given["stop_token_ids"] = frozenset(given.get("stop_token_ids", ()))
    return SamplingParams(**given)
