"""A generation request: the same for the engine of this process and for other servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from app.auth.keys import calling_tenant
from app.config import PrefixCache
from app.engine.scheduling.sequence import SamplingParams
from app.models.entry import ModelEntry
from app.models.external import ExternalModel
from app.models.registry import ServedModel
from app.vllm.servers import VllmModel

_LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ServedElsewhere:
    """A model of another server. Its tokenizer is known here only if this service runs it."""

    entry: ModelEntry
    model: ExternalModel
    vllm: VllmModel | None = None  # set if it is a server that this service runs

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.vllm is None else self.vllm.tokenizer


Served = ServedModel | ServedElsewhere


@dataclass(frozen=True)
class Chat:
    """Messages, each with a role, content and maybe calls of tools, for the chat template.

    The arguments of a call are an object here; other servers take them as a text of JSON.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()  # for templates that tell the model of them
    may_call: bool = False  # the model chooses to call them
    may_call_many: bool = True  # in one output
    add_generation_prompt: bool = True  # the text ends with the beginning of a new message
    continue_final_message: bool = False  # it ends within the last message
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for the template alone

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the template gets beside messages and tools."""
        return {
            **self.chat_template_kwargs,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }


Prompt = str | Sequence[int] | Chat
Traffic = Literal["live", "bench"]


@dataclass(frozen=True)
class GenerationRequest:
    """``n`` outputs for each prompt, which is a text, token ids or messages.

    Outputs are ordered by prompt. With a seed, the outputs of a prompt have consecutive seeds.
    """

    served: Served
    prompts: Sequence[Prompt]
    params: SamplingParams
    stop: Sequence[str] = ()
    n: int = 1
    timeout_s: float | None = None  # outputs that it cuts short end with TIMEOUT
    fills_context: bool = False  # fewer than max_new_tokens where the context ends before
    traffic: Traffic = "live"  # the label of its metrics
    # Requests of a tenant with the same salt share what they have read of prompts. None: each
    # prompt is read in full, so that times can be compared.
    cache_salt: str | None = None

    def cache_scope(self, prefix_cache: PrefixCache) -> str | None:
        """Requests of one scope share what is read of their prompts here. None: it is read in full.

        Without ``shared``, a scope is within the tenant of the caller: times would tell others what
        it has asked for.
        """
        if prefix_cache == "off" or self.cache_salt is None:
            return None
        return repr((_tenant(prefix_cache), self.cache_salt))

    def salt_elsewhere(self, prefix_cache: PrefixCache) -> str | None:
        """The salt for another server, which does not know our tenants. None for no salt."""
        tenant, salt = _tenant(prefix_cache), self.cache_salt
        if tenant is None:
            return salt or None
        return sha256(repr((tenant, salt)).encode()).hexdigest()

    def params_of(self, number: int) -> SamplingParams:
        """The parameters of one of the ``n`` outputs of a prompt, ``number`` from 0."""
        if self.params.seed is None or not number:
            return self.params
        return replace(self.params, seed=(self.params.seed + number) % (_LAST_SEED + 1))

    def alone(
        self, prompts: Sequence[tuple[int, ...]], max_len: int
    ) -> list[tuple["GenerationRequest", tuple[int, ...]]]:
        """The request for each output alone, with the token ids of its prompt.

        ``max_len`` is the length of the context.
        """
        return [
            (self._one_of(at, number, max_len - len(ids)), ids)
            for at, ids in enumerate(prompts)
            for number in range(self.n)
        ]

    def _one_of(self, at: int, number: int, rest: int) -> "GenerationRequest":
        """``rest`` is the room behind the prompt."""
        params = self.params_of(number)
        if self.fills_context:
            params = replace(params, max_new_tokens=max(1, min(rest, params.max_new_tokens)))
        return replace(self, prompts=[self.prompts[at]], params=params, n=1, fills_context=False)


def _tenant(prefix_cache: PrefixCache) -> str | None:
    return None if prefix_cache == "shared" else calling_tenant()
