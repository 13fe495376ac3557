"""The sampling parameters of request bodies, and the engine's parameters that they become.

Names, defaults and ranges are those of the engine's ``SamplingParams``, which checks the ranges.
"""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt

from app.engine.sequence import SamplingParams

Number = Annotated[float, Field(strict=True)]
StopTokenIds = Annotated[list[int], Field(max_length=256)]

_NAMES = frozenset(field.name for field in fields(SamplingParams))


class SamplingFields(BaseModel):
    """Of this project's own routes. Temperature 0 is greedy."""

    max_new_tokens: int = SamplingParams.max_new_tokens
    temperature: float = SamplingParams.temperature
    top_p: float = SamplingParams.top_p
    top_k: int = SamplingParams.top_k
    min_p: float = Field(
        default=SamplingParams.min_p,
        description="Minimum probability of a token, as a share of the most likely token's.",
    )
    repetition_penalty: float = Field(
        default=SamplingParams.repetition_penalty,
        description="Above 1, tokens of the prompt and the output so far become less likely.",
    )
    seed: int | None = SamplingParams.seed
    stop_token_ids: StopTokenIds = Field(default_factory=list)
    ignore_eos: bool = SamplingParams.ignore_eos


class OpenAISamplingFields(BaseModel):
    """Of the OpenAI routes: strict types, and null for the default. Some fields are vLLM's."""

    temperature: Number | None = Field(default=None, description="1 by default; 0 is greedy.")
    top_p: Number | None = None
    seed: StrictInt | None = None

    # vLLM's
    top_k: StrictInt | None = Field(default=None, ge=-1, description="0 and -1 are off.")
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    stop_token_ids: StopTokenIds | None = None
    ignore_eos: StrictBool | None = None


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
    given["stop_token_ids"] = frozenset(given.get("stop_token_ids", ()))
    return SamplingParams(**given)
