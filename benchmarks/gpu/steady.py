"""The steady state of an engine: all prompts are prefilled, and all sequences decode."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from app.engine.cache.paged_cache import unit_shape
from app.engine.cache.pages import pages_of
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant
from benchmarks.offline import engine_requests
from benchmarks.workload import SampleRequest
from pruning.models.blocks import num_blocks

_Key = TypeVar("_Key")


class SteadyBatch:
    """A batch of decoding requests. Their outputs must be long enough for all measured steps."""

    def __init__(
        self,
        variant: Variant,
        requests: Sequence[SampleRequest],
        make_engine: Callable[..., Engine] = Engine,
    ) -> None:
        self._size = len(requests)
        longest_prompt = max(len(request.prompt_ids) for request in requests)
        limits = EngineLimits(
            max_num_seqs=len(requests),
            max_batch_tokens=longest_prompt,  # no prompt is split
            **room_for(variant, requests),
        )
        self._engine = make_engine(limits)
        self._engine.kernels.finish(variant)
        for request in engine_requests(variant, requests):
            self._engine.add(request)
        started: set[str] = set()
        while len(started) < len(requests):
            started |= {event.request_id for event in self._engine.step()}

    def step_s(self) -> float:
        """Seconds of one step, which generates one token for each sequence."""
        began_s = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - began_s
        assert len(events) == self._size, "a sequence finished"
        return seconds


def room_for(variant: Variant, requests: Sequence[SampleRequest]) -> dict[str, int]:
    """Limits of an engine that runs these requests at once, and leaves a card to other engines."""
    longest = max(len(request.prompt_ids) + request.num_new_tokens for request in requests)
    num_units = len(requests) * pages_of(longest) * num_blocks(variant.model) + 1  # of padding
    return {
        "max_model_len": longest,
        "kv_cache_bytes": num_units * unit_shape(variant.model).num_bytes,
    }


def steady_output_len(batch_size: int, num_steps: int) -> int:
    """Output length for ``num_steps`` measured steps. Some decode while others are prefilled."""
    return num_steps + 2 * batch_size + 2


def median_steps_s(batches: Mapping[_Key, SteadyBatch], num_steps: int) -> dict[_Key, float]:
    """Median seconds of a step of each batch. Batches alternate, after one step of warm-up."""
    turns = [{key: batch.step_s() for key, batch in batches.items()} for _ in range(1 + num_steps)]
    return {key: median(turn[key] for turn in turns[1:]) for key in batches}
