"""Requests for tests, what they must give, and an engine run with its invariants checked."""

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence as Values
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

from app.engine.cache.paged_cache import unit_shape
from app.engine.cache.pages import pages_of
from app.engine.engine import Engine
from app.engine.sampling.sampling import Choice, choose, new_generator
from app.engine.scheduling.sequence import (
    FinishReason,
    PromptToken,
    Request,
    SamplingParams,
    Sequence,
    TokenEvent,
)
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import num_blocks
from tests.support.integrity import check_engine
from tests.support.tiny import VOCAB_SIZE, generated, tiny_model

PRUNED_BLOCKS = (0, 2, 3, 5)
_ids = itertools.count()


@cache
def variant(pruned: bool = False, family: str = "llama") -> Variant:
    keep = PRUNED_BLOCKS if pruned else None
    return make_variant(f"tiny@-{2 * pruned}", "tiny", tiny_model(family), keep)


def cache_bytes(num_tokens: int, of: Variant | None = None, *, padding: int = 1) -> int:
    """Memory for whole pages of so many tokens of a variant, and for units of padding."""
    model = (of or variant()).model
    num_units = pages_of(num_tokens) * num_blocks(model) + padding
    return num_units * unit_shape(model).num_bytes


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Token ids without the special ones, which come first in the vocabulary."""
    return tuple(random.Random(seed).choices(range(3, VOCAB_SIZE), k=length))


def request(
    prompt_ids: Values[int] = (5, 6, 7),
    of: Variant | None = None,
    *,
    request_id: str | None = None,
    max_new_tokens: int = 8,
    deadline_s: float | None = None,
    **params: Any,
) -> Request:
    return Request(
        request_id=request_id or f"request-{next(_ids)}",
        variant=of or variant(),
        prompt_ids=tuple(prompt_ids),
        params=SamplingParams(max_new_tokens=max_new_tokens, **params),
        deadline_s=deadline_s,
    )


def expected(each: Request) -> list[int]:
    """What ``generate`` makes of a greedy request."""
    return generated(each.variant.model, each.prompt_ids, each.params.max_new_tokens)


@torch.inference_mode()
def plain(each: Request) -> list[Choice]:
    """What any request must give: whole forwards without a cache, one sequence, token by token."""
    seq = Sequence(each, new_generator(each.params))
    choices = []
    for _ in range(each.params.max_new_tokens):
        logits = each.variant.model(torch.tensor([seq.tokens])).logits[:, -1].float()
        [choice] = choose(logits, [seq]).read()
        assert choice is not None
        seq.tokens.append(choice.token_id)
        choices.append(choice)
        if seq.finish_reason():
            break
    return choices


@torch.inference_mode()
def scored_prompt(of: Variant, prompt_ids: Values[int], num_best: int) -> list[PromptToken]:
    """What the log-probabilities of a prompt must be: one forward of the whole."""
    logprobs = of.model(torch.tensor([list(prompt_ids)])).logits[0].float().log_softmax(dim=-1)
    found = [PromptToken(prompt_ids[0])]
    for row, token_id in zip(logprobs, prompt_ids[1:], strict=False):
        best = row.topk(num_best)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append(PromptToken(token_id, float(row[token_id]), tuple(top)))
    return found


def check_scored(found: Values[PromptToken], expected: Values[PromptToken]) -> None:
    assert [each.token_id for each in found] == [each.token_id for each in expected]
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        check_best(ours.top_logprobs, theirs.top_logprobs)


def check_best(found: Values[tuple[int, float]], expected: Values[tuple[int, float]]) -> None:
    """The same tokens, unless two are equally likely but for rounding."""
    values = [value for _, value in expected]
    assert [value for _, value in found] == pytest.approx(values, abs=1e-3)
    for (token_id, _), (other_id, value) in zip(found, expected, strict=True):
        num_equal = sum(abs(value - each) < 1e-4 for each in values)
        is_tie = num_equal > 1 or value == values[-1]  # the next token may be as likely as the last
        assert token_id == other_id or is_tie


@dataclass
class Outcome:
    """What the events said, by request id."""

    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, TokenEvent] = field(default_factory=dict)

    def take(self, events: Values[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.last, "an event after the last one"
            if event.token_id is not None:
                self.tokens[event.request_id].append(event.token_id)
            if event.finish_reason is not None:
                assert event.timings is not None
                assert event.timings.num_tokens == len(self.tokens[event.request_id])
                self.last[event.request_id] = event

    def reason(self, request: Request) -> FinishReason | None:
        return self.last[request.request_id].finish_reason

    def of(self, request: Request) -> list[int]:
        return self.tokens[request.request_id]


def run(engine: Engine, *requests: Request, outcome: Outcome | None = None) -> Outcome:
    """Add the requests and step until nothing is left."""
    outcome = outcome or Outcome()
    for each in requests:
        engine.add(each)
    while engine.has_work:
        outcome.take(engine.step())
        check_engine(engine)
    return outcome
