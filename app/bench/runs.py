"""One run of a scenario: requests of fixed lengths, in an engine of their own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

import torch

from app.bench.plan import BenchPlan, Scenario
from app.engine.async_engine import AsyncEngine
from app.engine.autotuning import OFF, Autotuner
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, SamplingParams, Timings
from app.engine.variant import Variant
from pruning.plural import counted
from pruning.worker.gpu import energy_j

_UNLIMITED = 1 << 30  # tokens, so that no request is refused


class WrongLength(RuntimeError):
    """A response has another number of tokens than requested, so its times mean nothing."""


@dataclass(frozen=True)
class Sample:
    """The measurements of one run. The first of ``times_s`` is the time of the scenario."""

    times_s: Mapping[str, float]
    num_tokens: int  # generated, or read for a prompt
    seconds: float  # of the whole run
    peak_memory_bytes: int | None  # of tensors on the GPU, including the weights of all variants
    energy_j: float | None  # of the whole GPU
    kernels: tuple[Mapping[str, str], ...] = ()  # of its requests, each only once
    num_cached_tokens: int = 0  # of prompts: their keys and values were there

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


Measure = Callable[[str, Scenario, BenchPlan], Sample]  # a run of the side of this name


@dataclass(frozen=True)
class OwnRuns:
    """Variants in memory, each run in an engine of its own."""

    sides: Mapping[str, Variant]
    tuner: Autotuner = OFF

    def measure(self, name: str, scenario: Scenario, plan: BenchPlan) -> Sample:
        """Raises ``WrongLength``, or ``RequestRefused`` for lengths beyond the model's maximum."""
        variant = self.sides[name]
        requests = requests_of(scenario, variant, plan)
        engine = Engine(_limits(scenario, requests, plan), tuner=self.tuner)
        engine.kernels.finish(variant)  # on a GPU they are recorded, which takes time
        device = variant.model.device
        is_cuda = device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        before_j, began_s = energy_j(device), time.perf_counter()
        if scenario is Scenario.SERVED:
            timings = asyncio.run(_in_engine(engine, requests, plan.concurrency))
        else:
            timings = _at_once(engine, requests)
        seconds, after_j = time.perf_counter() - began_s, energy_j(device)
        return replace(
            sample_of(scenario, plan, requests, timings, seconds),
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if is_cuda else None,
            energy_j=None if before_j is None or after_j is None else after_j - before_j,
        )


def sample_of(
    scenario: Scenario,
    plan: BenchPlan,
    requests: Sequence[Request],
    timings: Sequence[Timings],
    seconds: float,
) -> Sample:
    """What is known of a run by the times of its requests. Raises ``WrongLength``."""
    for request, timing in zip(requests, timings, strict=True):
        if timing.num_tokens != request.params.max_new_tokens:
            raise WrongLength(
                f"{request.variant.name} generated {timing.num_tokens} of "
                f"{counted(request.params.max_new_tokens, 'token')}: see the log"
            )
    is_prompt = scenario is Scenario.PROMPT
    return Sample(
        times_s=_times_s(scenario, timings),
        num_tokens=plan.long_prompt if is_prompt else sum(one.num_tokens for one in timings),
        seconds=seconds,
        peak_memory_bytes=None,
        energy_j=None,
        kernels=_kernels(timings),
        num_cached_tokens=num_cached_tokens(timings),
    )


def num_cached_tokens(timings: Sequence[Timings]) -> int:
    """The tokens of prompts that were not read, because an earlier request had read them."""
    return sum(one.num_cached_tokens or 0 for one in timings)


def _kernels(timings: Sequence[Timings]) -> tuple[Mapping[str, str], ...]:
    chosen = {tuple(sorted(one.kernels.items())) for one in timings}
    return tuple(dict(kernels) for kernels in sorted(chosen) if kernels)


def _times_s(scenario: Scenario, timings: Sequence[Timings]) -> dict[str, float]:
    """Mean times over the requests, by name."""
    ttft_s = fmean(one.ttft_s for one in timings if one.ttft_s is not None)
    if scenario is Scenario.PROMPT:
        return {"ttft": ttft_s}
    tpot_s = fmean(one.tpot_s for one in timings if one.tpot_s is not None)
    e2e_s = fmean(one.e2e_s for one in timings)
    return {"tpot": tpot_s, "e2e": e2e_s, "ttft": ttft_s}


def requests_of(scenario: Scenario, variant: Variant, plan: BenchPlan) -> list[Request]:
    """The requests of a run, the same for every variant."""
    lengths = [(plan.prompt_tokens, plan.new_tokens)] * plan.batch_size
    if scenario is Scenario.SERVED:
        lengths = [(plan.prompt_tokens, plan.served_tokens)] * plan.requests
    elif scenario is Scenario.PROMPT:
        lengths = [(plan.long_prompt, 1)]
    return random_requests(variant, lengths, plan.seed)


def random_requests(
    variant: Variant, lengths: Iterable[tuple[int, int]], seed: int
) -> list[Request]:
    """Greedy requests of random tokens, the same for every variant.

    ``lengths`` are those of each prompt and its answer.
    """
    draw = Random(seed)  # noqa: S311 - no secret
    ids = range(variant.vocab_size)
    return [
        Request(
            str(index),
            variant,
            tuple(draw.choices(ids, k=prompt_tokens)),
            SamplingParams(max_new_tokens=new_tokens, ignore_eos=True),
        )
        for index, (prompt_tokens, new_tokens) in enumerate(lengths)
    ]


def _limits(scenario: Scenario, requests: Sequence[Request], plan: BenchPlan) -> EngineLimits:
    """Those of an engine for these requests alone: steps for longer ones are not recorded."""
    longest = max(len(each.prompt_ids) + each.params.max_new_tokens for each in requests)
    if scenario is Scenario.SERVED:
        return EngineLimits(max_num_seqs=plan.concurrency, max_model_len=longest)
    return EngineLimits(  # all prompts in one forward
        max_num_seqs=len(requests),
        max_batch_tokens=sum(len(request.prompt_ids) for request in requests),
        max_model_len=longest,
    )


def _at_once(engine: Engine, requests: Sequence[Request]) -> list[Timings]:
    """One batch from the start."""
    for request in requests:
        engine.add(_arriving_now(request))
    timings: dict[str, Timings] = {}
    while engine.has_work:
        for event in engine.step():
            if event.timings is not None:
                timings[event.request_id] = event.timings
    return [timings[request.request_id] for request in requests]


def _arriving_now(request: Request) -> Request:
    """The request with the current time of arrival, instead of that of its creation."""
    return replace(request, arrived_s=time.monotonic())


async def _in_engine(inner: Engine, requests: Sequence[Request], num_clients: int) -> list[Timings]:
    engine = AsyncEngine(inner, max_waiting=len(requests), max_waiting_tokens=_UNLIMITED)

    async def timings_of(request: Request) -> Timings:
        async with engine.stream(_arriving_now(request)) as events:
            [timings] = [event.timings async for event in events if event.timings is not None]
        return timings

    engine.start()
    try:
        return await closed_loop(requests, num_clients, timings_of)
    finally:
        await engine.stop()


async def closed_loop(
    requests: Sequence[Request],
    num_clients: int,
    timings_of: Callable[[Request], Awaitable[Timings]],
) -> list[Timings]:
    """Each client waits for its response before its next request."""
    waiting, timings = iter(requests), dict[str, Timings]()

    async def client() -> None:
        for request in waiting:
            timings[request.request_id] = await timings_of(request)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return [timings[request.request_id] for request in requests]
