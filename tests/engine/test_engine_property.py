"""Whatever arrives, whenever, of whatever variant: everyone gets what ``generate`` would give."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.engine.sequence import FinishReason, Request
from tests.engine.requests import Outcome, prompt, request, variant
from tests.tiny import generated

LONGEST = 10
ORACLE: dict[tuple[bool, int], list[int]] = {}


@dataclass(frozen=True)
class Arrival:
    pruned: bool
    num_prompt: int
    max_new_tokens: int
    wait_steps: int  # since the arrival before
    cancel_after: int | None  # steps


def oracle(arrival: Arrival) -> list[int]:
    """Greedy tokens, computed once per variant and prompt for the longest answer."""
    key = arrival.pruned, arrival.num_prompt
    if key not in ORACLE:
        model = variant(arrival.pruned).model
        ORACLE[key] = generated(model, prompt(arrival.num_prompt, seed=arrival.num_prompt), LONGEST)
    return ORACLE[key][: arrival.max_new_tokens]


arrivals = st.lists(
    st.builds(
        Arrival,
        pruned=st.booleans(),
        num_prompt=st.sampled_from([1, 2, 5, 9, 17, 40, 70]),
        max_new_tokens=st.integers(1, LONGEST),
        wait_steps=st.integers(0, 4),
        cancel_after=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=10,
)
limits = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 5),
    max_batch_tokens=st.sampled_from([1, 8, 20, 512]),
    max_cache_tokens=st.sampled_from([128, 512, 4096]),
)


@settings(max_examples=40, deadline=None)
@given(arrivals=arrivals, limits=limits)
def test_batched_output_is_one_by_one_output(arrivals: list[Arrival], limits: EngineLimits) -> None:
    drive = Drive(Engine(limits))
    for arrival in arrivals:
        drive.steps(arrival.wait_steps)
        drive.add(arrival)
    drive.finish()
    for its, arrival in drive.requests.items():
        tokens, reason = drive.outcome.of(its), drive.outcome.reason(its)
        if reason is FinishReason.ABORT:
            assert arrival.cancel_after is not None
            assert tokens == oracle(arrival)[: len(tokens)]
        else:
            assert tokens == oracle(arrival)


class Drive:
    """An engine, what was asked of it, and when to take some of that back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outcome = Outcome()
        self.requests: dict[Request, Arrival] = {}
        self._now = 0
        self._cancels: list[tuple[int, str]] = []

    def add(self, arrival: Arrival) -> None:
        ids = prompt(arrival.num_prompt, seed=arrival.num_prompt)
        its = request(ids, variant(arrival.pruned), max_new_tokens=arrival.max_new_tokens)
        self.engine.add(its)
        self.requests[its] = arrival
        if arrival.cancel_after is not None:
            self._cancels.append((self._now + arrival.cancel_after, its.request_id))

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for when, request_id in self._cancels:
                if when == self._now and (event := self.engine.cancel(request_id)):
                    self.outcome.take([event])
                    self.engine.check_integrity()
            self.outcome.take(self.engine.step())
            self.engine.check_integrity()
            self._now += 1

    def finish(self) -> None:
        for _ in range(10_000):
            if not self.engine.has_work:
                return
            self.steps(1)
        raise AssertionError("the engine does not come to an end")
