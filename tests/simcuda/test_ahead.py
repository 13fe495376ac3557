"""Decodes that a simulated GPU begins before the tokens in front of them are read."""

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits, Scheduler
from app.engine.scheduling.sequence import FinishReason, Request, TokenEvent
from app.engine.variant import Variant, make_variant
from tests.support.engine_requests import PRUNED_BLOCKS, cache_bytes, prompt, request, variant
from tests.support.integrity import check_engine
from tests.support.simcuda.device import SimulatedCuda, simulated_cuda
from tests.support.simcuda.engine_runs import KINDS, events, recorded
from tests.support.simcuda.models import on_device, variant_on
from tests.support.tiny import tiny_model

LIMITS = EngineLimits(max_num_seqs=4, kv_cache_bytes=1 << 22, max_model_len=64)
AHEAD = ["upload", "replay", "download", "wait"]
SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "biased": {"logit_bias": ((3, 2.5), (40, -100)), "temperature": 0.8, "seed": 2},
    "penalised": {"repetition_penalty": 1.4, "temperature": 0.7, "seed": 1},
    "reported": {"num_logprobs": 2},
}


@pytest.fixture
def log_of_replays(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """The device, whose log has replays too."""
    usual = cuda.replay

    def replay(graph: int) -> None:
        cuda.log.add("replay", "", 0, is_capturing=False)
        usual(graph)

    monkeypatch.setattr(cuda, "replay", replay)
    return cuda


def kinds(cuda: SimulatedCuda) -> list[str]:
    found = [event.kind for event in cuda.log.events]
    cuda.log.clear()
    return found


def is_ahead(engine: Engine) -> bool:
    return engine._ahead is not None


def decoding(of: Variant, num_rows: int, **params: Any) -> Engine:
    """An engine in the middle of so many outputs."""
    engine = recorded(of, limits=LIMITS)
    for row in range(num_rows):
        params = {"max_new_tokens": 20, "ignore_eos": True, **params}
        engine.add(request(prompt(9, row), of, request_id=str(row), **params))
    while len(engine.step()) < num_rows:
        pass
    return engine


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_a_decode_is_launched_before_the_tokens_of_the_one_before_are_waited_for(
    log_of_replays: SimulatedCuda, kind: str, num_rows: int
) -> None:
    cuda = log_of_replays
    engine = decoding(variant_on(tiny_model("llama")), num_rows, **KINDS[kind])
    num_uploads = 1 if kind == "greedy" else 2
    launch = AHEAD[:1] + ["replay"] + ["upload"] * (num_uploads - 1) + ["download"]
    cuda.log.clear()
    engine.step()
    assert kinds(cuda) == [*launch, *launch, "wait"]
    for _ in range(5):
        assert len(engine.step()) == num_rows
        assert kinds(cuda) == [*launch, "wait"]


@pytest.mark.parametrize("kind", ["penalties", "log-probabilities", "all"])
def test_what_needs_the_tokens_on_the_host_waits_for_them(
    log_of_replays: SimulatedCuda, kind: str
) -> None:
    engine = decoding(variant_on(tiny_model("llama")), 2, **KINDS[kind])
    for _ in range(3):
        log_of_replays.log.clear()
        assert len(engine.step()) == 2
        assert kinds(log_of_replays).count("replay") == 1
    assert not is_ahead(engine)


def test_an_arrival_waits_for_one_step_and_ends_the_running_ahead(cuda: SimulatedCuda) -> None:
    of = variant_on(tiny_model("llama"))
    engine = decoding(of, 2)
    engine.step()
    assert is_ahead(engine)
    engine.add(request(prompt(9, 7), of, request_id="late", max_new_tokens=2))
    assert [event.request_id for event in engine.step()] == ["0", "1"]
    assert not is_ahead(engine)
    assert [event.request_id for event in engine.step()] == ["late"]
    assert cuda.num_replays > cuda.num_captures


def test_a_token_behind_the_end_is_thrown_away_with_its_pages(cuda: SimulatedCuda) -> None:
    """The end was not known when the next decode was launched. What is cancelled ends at once."""
    model = tiny_model("llama")
    of, cpu = variant_on(model), make_variant("tiny", "tiny", model)

    def asked(of: Variant, stops: frozenset[int] = frozenset()) -> list[Request]:
        return [
            request(
                prompt(9, row), of, request_id=str(row), max_new_tokens=20, ignore_eos=True,
                stop_token_ids=stops if row == 1 else frozenset(),
            )
            for row in range(3)
        ]  # fmt: skip

    tokens = [event.token_id for event in events(Engine(LIMITS), *asked(cpu))["1"]]
    end = next(token for token in tokens[4:] if token is not None and token not in tokens[:4])
    expected = events(Engine(LIMITS), *asked(cpu, frozenset({end})))
    assert 4 < len(expected["1"]) < 20
    engine = recorded(of, limits=LIMITS)
    num_replays = cuda.num_replays
    found = events(engine, *asked(of, frozenset({end})))
    assert {name: [each.token_id for each in of] for name, of in found.items()} == {
        name: [each.token_id for each in of] for name, of in expected.items()
    }
    assert found["1"][-1].finish_reason is FinishReason.STOP
    assert cuda.num_replays - num_replays == 19  # three rows of which one was thrown away
    assert not engine.mend_idle()
    for each in asked(of):
        engine.add(each)
    for _ in range(6):
        engine.step()
    for row in range(3):
        assert is_ahead(engine)
        engine.cancel(str(row))
        check_engine(engine)
    assert (is_ahead(engine), engine.has_work) == (False, False)
    assert not engine.mend_idle()


@cache
def alone(num_prompt: int, sampling: str, pruned: bool) -> list[int]:
    """What a request gives by itself on a CPU."""
    of = variant(pruned)
    ask = request(
        prompt(num_prompt, num_prompt), of, request_id="", max_new_tokens=12, ignore_eos=True,
        **SAMPLINGS[sampling],
    )  # fmt: skip
    engine, found = Engine(LIMITS), list[int]()
    engine.add(ask)
    while engine.has_work:
        found += [event.token_id for event in engine.step() if event.token_id is not None]
    return found


class Traffic:
    """Random arrivals, cancels, stops and preemptions, and what each request must give."""

    def __init__(self, seed: int, variants: Mapping[bool, Variant], engine: Engine) -> None:
        self.random = random.Random(seed)
        self.variants = variants
        self.engine = engine
        self.expected: dict[str, list[int]] = {}
        self.found: dict[str, list[int]] = {}
        self.num_ahead = 0

    def run(self) -> None:
        for number in range(60):
            if self.random.random() < 0.25:
                self.add(str(number))
            if self.random.random() < 0.08 and self.engine._sequences:
                self.cancel(self.random.choice(sorted(self.engine._sequences)))
            self.step()
        while self.engine.has_work:
            self.step()
        assert not self.engine.mend_idle()
        assert self.found == self.expected

    def add(self, name: str) -> None:
        draw = self.random
        num_prompt, sampling = draw.choice([1, 9, 17, 40]), draw.choice(sorted(SAMPLINGS))
        pruned = draw.random() < 0.2
        tokens = alone(num_prompt, sampling, pruned)
        num_tokens = draw.randint(1, 12)
        stops = frozenset({draw.choice(tokens)}) if draw.random() < 0.4 else frozenset[int]()
        ask = request(
            prompt(num_prompt, num_prompt), self.variants[pruned], request_id=name,
            max_new_tokens=num_tokens, ignore_eos=True, stop_token_ids=stops, **SAMPLINGS[sampling],
        )  # fmt: skip
        self.engine.add(replace(ask, cache_scope=draw.choice([None, "all"])))
        ends = [at + 1 for at, token in enumerate(tokens) if token in stops]
        self.expected[name] = tokens[: min([num_tokens, *ends])]
        self.found[name] = []

    def cancel(self, name: str) -> None:
        event = self.engine.cancel(name)
        assert event is not None
        assert self.found[name] == self.expected[name][: len(self.found[name])]
        self.expected[name] = self.found[name]

    def step(self) -> None:
        for event in self.engine.step():
            self.take(event)
        self.num_ahead += is_ahead(self.engine)
        check_engine(self.engine)

    def take(self, event: TokenEvent) -> None:
        assert event.finish_reason not in (FinishReason.ERROR, FinishReason.ABORT)
        if event.token_id is not None:
            self.found[event.request_id].append(event.token_id)


@pytest.fixture(scope="module")
def both() -> Any:
    with simulated_cuda() as cuda:
        model = on_device(tiny_model("llama"))
        yield (
            cuda,
            {
                pruned: make_variant("tiny", "tiny", model, PRUNED_BLOCKS if pruned else None)
                for pruned in (False, True)
            },
        )


def traffic(seed: int, of: Mapping[bool, Variant], num_tokens: int) -> Traffic:
    limits = EngineLimits(4, kv_cache_bytes=cache_bytes(num_tokens), max_model_len=64)
    return Traffic(seed, of, recorded(*of.values(), limits=limits))


@pytest.mark.slow
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), num_tokens=st.sampled_from([96, 128, 512]))
def test_whatever_arrives_and_ends_gives_what_it_gives_alone(
    both: Any, seed: int, num_tokens: int
) -> None:
    """Also by the plain order, in which no decode is launched ahead."""
    _, variants = both
    ahead = traffic(seed, variants, num_tokens)
    ahead.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "again", lambda _self, _batch: None)
        plain = traffic(seed, variants, num_tokens)
        plain.run()
    assert plain.num_ahead == 0


def test_such_traffic_runs_ahead(both: Any) -> None:
    _, variants = both
    each = [traffic(seed, variants, 512) for seed in range(2)]
    for one in each:
        one.run()
    assert sum(one.num_ahead for one in each) > 3


def test_a_batch_whose_sequences_have_no_page_is_not_repeated(cuda: SimulatedCuda) -> None:
    of = variant_on(tiny_model("llama"))
    limits = EngineLimits(2, kv_cache_bytes=cache_bytes(48, of), max_model_len=48)
    engine = recorded(of, limits=limits)
    for row in range(2):
        ask = request(prompt(9, row), of, request_id=str(row), max_new_tokens=39, ignore_eos=True)
        engine.add(ask)
    found: dict[str, list[int | None]] = {"0": [], "1": []}
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event.token_id)
        check_engine(engine)
    assert engine.stats().cache_counts["tiny"].num_preemptions > 0
    assert [len(each) for each in found.values()] == [39, 39]
    assert cuda.num_replays > cuda.num_captures
