"""An engine in the middle of its work: every prompt has been read, and all sequences decode."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.engine.variant import Variant
from benchmarks.offline import requests
from benchmarks.workload import Ask

_Key = TypeVar("_Key")

_ROOM = 1 << 30  # cache tokens: what is measured is never refused


class SteadyBatch:
    """All of these at once; they have to be long enough for the steps that are taken."""

    def __init__(
        self, variant: Variant, asks: Sequence[Ask], make_engine: Callable[..., Engine] = Engine
    ) -> None:
        self._size = len(asks)
        limits = EngineLimits(
            max_num_seqs=len(asks),
            max_batch_tokens=max(len(ask.prompt_ids) for ask in asks),  # no prompt is cut
            max_cache_tokens=_ROOM,
        )
        self._engine = make_engine(limits)
        for request in requests(variant, asks):
            self._engine.add(request)
        begun: set[str] = set()
        while len(begun) < len(asks):
            begun |= {event.request_id for event in self._engine.step()}

    def step_s(self) -> float:
        """Seconds of one step, a token for each sequence."""
        began_s = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - began_s
        assert len(events) == self._size, "a sequence has ended"
        return seconds


def steady_output_len(batch_size: int, num_steps: int) -> int:
    """Tokens that each answer needs for so many steps: some decode while others are still read."""
    return num_steps + 2 * batch_size + 2


def median_steps_s(batches: Mapping[_Key, SteadyBatch], num_steps: int) -> dict[_Key, float]:
    """Median seconds of a step of each, all in turn, after one that does not count."""
    turns = [{key: batch.step_s() for key, batch in batches.items()} for _ in range(1 + num_steps)]
    return {key: median(turn[key] for turn in turns[1:]) for key in batches}
