"""Whatever arrives, whenever, of whatever variant and sampling: everyone gets what it gets alone.

The oracle is a plain loop of whole forwards; its own sampling is tested against transformers'.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.engine.engine import Engine
from app.engine.running.cuda_graphs import Step
from app.engine.sampling.sampling import Choice
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, PromptToken, Request, TokenEvent
from tests.support.engine_requests import (
    Outcome,
    cache_bytes,
    check_best,
    check_scored,
    plain,
    prompt,
    request,
    scored_prompt,
    variant,
)
from tests.support.integrity import check_engine

LONGEST = 10
SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.4},
    "less of the same": {"presence_penalty": 0.5, "frequency_penalty": 0.8},
    "biased": {"logit_bias": ((3, 2.5), (40, -100)), "temperature": 0.8, "seed": 2},
    "reported": {"num_logprobs": 3},
    "read": {"num_prompt_logprobs": 2},
    "warm": {"temperature": 0.9, "seed": 3},
    "min-p": {"temperature": 1.4, "min_p": 0.1, "seed": 5},
    "nucleus": {"temperature": 1.2, "top_p": 0.8, "top_k": 20, "seed": 7, "num_logprobs": 1},
    "everything": {
        "temperature": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.02, "repetition_penalty": 1.2,
        "seed": 11, "num_logprobs": 0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Arrival:
    pruned: bool
    num_prompt: int
    sampling: str
    max_new_tokens: int
    deadline_after: int | None  # steps
    cache_scope: str | None
    tenant: str | None
    num_samples: int  # requests of the same prompt, as for ``n`` outputs

    @property
    def shared(self) -> tuple[str | None, bool, int]:
        """What requests have to have in common to find pages of each other."""
        return self.cache_scope, self.pruned, self.num_prompt


@cache
def oracle(pruned: bool, num_prompt: int, sampling: str) -> list[Choice]:
    """The longest answer, computed once."""
    ids = prompt(num_prompt, seed=num_prompt)
    return plain(
        request(
            ids, variant(pruned), max_new_tokens=LONGEST, ignore_eos=True, **SAMPLINGS[sampling]
        )
    )


@cache
def scored(pruned: bool, num_prompt: int) -> list[PromptToken]:
    return scored_prompt(variant(pruned), prompt(num_prompt, seed=num_prompt), 2)


arrivals = st.builds(
    Arrival,
    pruned=st.booleans(),
    num_prompt=st.sampled_from([1, 2, 9, 17, 40, 70]),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    max_new_tokens=st.integers(1, LONGEST),
    deadline_after=st.none() | st.integers(0, 15),
    cache_scope=st.sampled_from([None, "", "other"]),
    tenant=st.sampled_from([None, "ann", "bob"]),
    num_samples=st.sampled_from([1, 1, 2, 3]),
)
limits = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 5),
    max_batch_tokens=st.sampled_from([1, 8, 20, 512]),
    kv_cache_bytes=st.sampled_from([96, 128, 512]).map(cache_bytes),
)


class EngineMachine(RuleBasedStateMachine):
    """An engine, and what was asked of it. One step is one second of its clock."""

    @initialize(limits=limits, is_recorded=st.booleans())
    def start(self, limits: EngineLimits, is_recorded: bool) -> None:
        self.now_s = 0.0
        self.engine = Engine(
            limits,
            clock=lambda: self.now_s,
            recorder=lambda _device: again if is_recorded else None,
        )
        self.open: dict[str, tuple[Request, Arrival]] = {}
        self.choices: dict[str, list[Choice]] = {}
        self.num_alike: Counter[tuple[str | None, bool, int]] = Counter()
        self.outcome = Outcome()

    @rule(arrival=arrivals)
    def add(self, arrival: Arrival) -> None:
        after_s = arrival.deadline_after
        for _ in range(arrival.num_samples):
            each = request(
                prompt(arrival.num_prompt, seed=arrival.num_prompt),
                variant(arrival.pruned),
                max_new_tokens=arrival.max_new_tokens,
                deadline_s=None if after_s is None else self.now_s + after_s,
                ignore_eos=True,
                **SAMPLINGS[arrival.sampling],
            )
            each = replace(each, cache_scope=arrival.cache_scope, tenant=arrival.tenant)
            self.engine.add(each)
            self.open[each.request_id] = each, arrival
            self.choices[each.request_id] = []
            self.num_alike[arrival.shared] += 1

    @rule(which=st.integers(0, 100), is_for_all=st.booleans())
    def cancel(self, which: int, is_for_all: bool) -> None:
        """One request, or all samples of an arrival that are still open."""
        if not self.open:
            return
        chosen = sorted(self.open)[which % len(self.open)]
        arrival = self.open[chosen][1]
        alike = [name for name, (_, of) in self.open.items() if of is arrival]
        for request_id in alike if is_for_all else [chosen]:
            event = self.engine.cancel(request_id)
            assert event is not None
            assert event.finish_reason is FinishReason.ABORT
            self.take(event)

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for event in self.engine.step():
                self.take(event)
            late = [each.request_id for each, _ in self.open.values() if self.is_late(each)]
            assert not late, "a deadline has passed and a step has not noticed"
            check_engine(self.engine)
            self.now_s += 1

    @invariant()
    def nothing_is_lost(self) -> None:
        check_engine(self.engine)
        assert self.engine.has_work == bool(self.open)

    def teardown(self) -> None:
        for _ in range(5_000):
            if not self.open:
                return
            self.step(1)
        raise AssertionError("the engine does not come to an end")

    def take(self, event: TokenEvent) -> None:
        self.outcome.take([event])
        each, arrival = self.open[event.request_id]
        expected = oracle(arrival.pruned, arrival.num_prompt, arrival.sampling)
        if event.token_id is not None:
            made = self.choices[event.request_id]
            is_read = arrival.sampling == "read" and not made
            assert bool(event.prompt) == is_read
            if is_read:
                check_scored(event.prompt, scored(arrival.pruned, arrival.num_prompt))
            check(event, expected[len(made)])
            made.append(expected[len(made)])
        if event.timings is not None:
            finds = arrival.cache_scope is not None and self.num_alike[arrival.shared] > 1
            assert finds or not event.timings.num_cached_tokens, "pages of a stranger"
            del self.open[event.request_id]
        if event.finish_reason is FinishReason.LENGTH:
            assert len(self.choices[event.request_id]) == arrival.max_new_tokens
        assert (event.finish_reason is FinishReason.TIMEOUT) == (
            self.is_late(each) and event.finish_reason is not FinishReason.ABORT
        )

    def is_late(self, each: Request) -> bool:
        return each.deadline_s is not None and each.deadline_s <= self.now_s


def again(step: Step) -> Step:
    """What a recording does, as a step over the same tensors, padding and all."""
    return step


def check(event: TokenEvent, expected: Choice) -> None:
    assert event.token_id == expected.token_id
    assert (event.logprob is None) == (expected.logprob is None)
    if event.logprob is not None:
        assert event.logprob == pytest.approx(expected.logprob, abs=1e-3)
    check_best(event.top_logprobs, expected.top_logprobs)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=15, stateful_step_count=25)
