"""Runs of engines on the simulated GPU and on the CPU, and how they compare."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, TokenEvent
from app.engine.variant import Variant
from tests.support.engine_requests import check_best, prompt, request
from tests.support.tiny import tiny_model

KINDS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3},
    "penalties": {
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3,
        "logit_bias": ((3, 2.0),),
    },
    "log-probabilities": {"num_logprobs": 3, "num_prompt_logprobs": 2},
    "all": {
        "temperature": 0.9, "top_p": 0.8, "seed": 4, "repetition_penalty": 1.1, "num_logprobs": 2,
    },
}  # fmt: skip
# The memory of a card is that of the host. Steps of few shapes are recorded.
LIMITS = EngineLimits(max_num_seqs=16, kv_cache_bytes=1 << 22, max_model_len=64)


def longer(num_tokens: int) -> PreTrainedModel:
    """A tiny model with so many positions."""
    model = copy.deepcopy(tiny_model("llama"))
    model.config.max_position_embeddings = num_tokens
    return model


def requests(of: Variant, num_tokens: int = 8) -> list[Request]:
    return [
        request(
            prompt(length, seed=length), of, request_id=f"{kind}, {length}",
            max_new_tokens=num_tokens, ignore_eos=True, **params,
        )
        for kind, params in KINDS.items()
        for length in (5, 40)
    ]  # fmt: skip


def recorded(*variants: Variant, limits: EngineLimits = LIMITS) -> Engine:
    """An engine with recorded steps of these variants."""
    engine = Engine(limits)
    engine.kernels.finish(*variants)
    return engine


def events(engine: Engine, *asked: Request) -> dict[str, list[TokenEvent]]:
    """What the engine says of each request, without timings."""
    found: dict[str, list[TokenEvent]] = {each.request_id: [] for each in asked}
    for each in asked:
        engine.add(each)
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(replace(event, timings=None))
    return found


def check(found: Mapping[str, list[TokenEvent]], expected: Mapping[str, list[TokenEvent]]) -> None:
    """The same tokens, and the same log-probabilities but for rounding."""
    for name, theirs in expected.items():
        ours = found[name]
        assert [each.token_id for each in ours] == [each.token_id for each in theirs], name
        for our, their in zip(ours, theirs, strict=True):
            assert our.finish_reason == their.finish_reason
            if their.logprob is not None:
                assert our.logprob == pytest.approx(their.logprob, abs=1e-3)
                check_best(our.top_logprobs, their.top_logprobs)
            assert len(our.prompt) == len(their.prompt)
            for scored, same in zip(our.prompt[1:], their.prompt[1:], strict=True):
                assert scored.logprob == pytest.approx(same.logprob, abs=1e-3)
