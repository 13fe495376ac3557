"""A generation request: the same for the engine of this process and for other servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.engine.sequence import SamplingParams
from app.models.entry import ModelEntry
from app.models.external import ExternalModel
from app.models.registry import ServedModel

_LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ServedElsewhere:
    """A model that another server generates for: it has a tokenizer, and nobody else has."""

    entry: ModelEntry
    model: ExternalModel

    @property
    def tokenizer(self) -> None:
        return None


@dataclass(frozen=True)
class Chat:
    """Messages that the model's chat template makes a prompt of: role, content, maybe a name."""

    messages: Sequence[Mapping[str, str]]


Prompt = str | Sequence[int] | Chat
Traffic = Literal["live", "bench"]


@dataclass(frozen=True)
class GenerationRequest:
    """``n`` answers to each prompt, a text, its token ids or messages.

    The answers to a prompt follow one another; with a seed, each has a seed of its own.
    """

    served: ServedModel | ServedElsewhere
    prompts: Sequence[Prompt]
    params: SamplingParams
    stop: Sequence[str] = ()
    n: int = 1
    timeout_s: float | None = None  # what it cuts short ends with TIMEOUT
    fills_context: bool = False  # as many tokens as fit, whatever max_new_tokens says
    traffic: Traffic = "live"  # what its requests are counted as

    def params_of(self, number: int) -> SamplingParams:
        """Of one of the ``n`` answers to a prompt."""
        if self.params.seed is None or not number:
            return self.params
        return replace(self.params, seed=(self.params.seed + number) % (_LAST_SEED + 1))
