"""A call as requests of OpenAI's API, one for each of its answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.engine.sequence import SamplingParams
from app.generation.request import Call, Chat, Prompt

# what a server need not know of unless it is asked for
_PASSED_ON = ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos")


@dataclass(frozen=True)
class Asked:
    """What is asked where, but for what all requests have."""

    path: str
    body: Mapping[str, Any]


def asked_of(call: Call, prompt: Prompt, number: int) -> Asked:
    """For the one of the ``n`` answers to this prompt."""
    params = call.params_of(number)
    body = _sampling(params)
    if call.stop:
        body["stop"] = list(call.stop)
    if not call.fills_context:
        body["max_tokens"] = params.max_new_tokens
    has_logprobs = params.num_logprobs is not None
    if isinstance(prompt, Chat):
        body["messages"] = list(prompt.messages)
        if has_logprobs:
            body |= {"logprobs": True, "top_logprobs": params.num_logprobs}
        return Asked("/chat/completions", body)
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if has_logprobs:
        body["logprobs"] = params.num_logprobs
    return Asked("/completions", body)


def _sampling(params: SamplingParams) -> dict[str, Any]:
    default = SamplingParams()
    body: dict[str, Any] = {"temperature": params.temperature}
    for name in _PASSED_ON:
        if (value := getattr(params, name)) != getattr(default, name):
            body[name] = value
    if params.stop_token_ids:
        body["stop_token_ids"] = sorted(params.stop_token_ids)
    return body
