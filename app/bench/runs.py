"""One run of one side of a scenario: requests of forced lengths through an engine of its own."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

import torch

from app.bench.plan import Plan, Scenario
from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.engine.sequence import Request, SamplingParams, Timings
from app.engine.variant import Variant
from pruning.worker.gpu import energy_j

_ROOM = 1 << 30  # cache tokens: what is measured is never refused
_FEW = 2  # new tokens of a run that only warms up


class WrongLength(RuntimeError):
    """A request was not answered with as many tokens as it had to be: its times mean nothing."""


@dataclass(frozen=True)
class Sample:
    """Of one run. ``times_s`` by name, the first of them is what the scenario is about."""

    times_s: Mapping[str, float]
    num_tokens: int  # generated, or read where the scenario is about a prompt
    seconds: float  # of the whole run
    peak_memory_bytes: int | None  # of tensors on the GPU, the weights of all sides included
    energy_j: float | None  # of the whole GPU

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


def warm_up(variant: Variant, scenario: Scenario, plan: Plan) -> None:
    """A short run that does not count: the first one is slower."""
    _run(scenario, variant, plan, new_tokens=_FEW)


def measure(variant: Variant, scenario: Scenario, plan: Plan) -> Sample:
    """Raises ``WrongLength``, and ``RequestRefused`` for lengths that the model does not take."""
    device = variant.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before_j, began_s = energy_j(device), time.perf_counter()
    timings = _run(scenario, variant, plan)
    seconds, after_j = time.perf_counter() - began_s, energy_j(device)
    is_cuda = device.type == "cuda"
    of_prompt = scenario is Scenario.PROMPT
    return Sample(
        times_s=_times_s(scenario, timings),
        num_tokens=plan.long_prompt if of_prompt else sum(its.num_tokens for its in timings),
        seconds=seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if is_cuda else None,
        energy_j=None if before_j is None or after_j is None else after_j - before_j,
    )


def _times_s(scenario: Scenario, timings: Sequence[Timings]) -> dict[str, float]:
    """Means over the requests."""
    ttft_s = fmean(its.ttft_s for its in timings if its.ttft_s is not None)
    if scenario is Scenario.PROMPT:
        return {"ttft": ttft_s}
    tpot_s = fmean(its.tpot_s for its in timings if its.tpot_s is not None)
    e2e_s = fmean(its.e2e_s for its in timings)
    return {"tpot": tpot_s, "e2e": e2e_s, "ttft": ttft_s}


def _run(
    scenario: Scenario, variant: Variant, plan: Plan, new_tokens: int | None = None
) -> list[Timings]:
    if scenario is Scenario.SERVED:
        asked = _requests(variant, plan, plan.requests, new_tokens or plan.served_tokens)
        timings = asyncio.run(_closed_loop(asked, plan.concurrency))
    elif scenario is Scenario.PROMPT:
        asked = _requests(variant, plan, 1, 1, prompt_tokens=plan.long_prompt)
        timings = _at_once(asked)
    else:
        asked = _requests(variant, plan, plan.batch_size, new_tokens or plan.new_tokens)
        timings = _at_once(asked)
    for request, its in zip(asked, timings, strict=True):
        if its.num_tokens != request.params.max_new_tokens:
            raise WrongLength(
                f"{variant.name} gave {its.num_tokens} of {request.params.max_new_tokens} tokens: "
                f"the log says why"
            )
    return timings


def _requests(
    variant: Variant, plan: Plan, number: int, new_tokens: int, prompt_tokens: int | None = None
) -> list[Request]:
    """The same for every side: random token ids, greedy, and of exactly these lengths."""
    draw = Random(plan.seed)  # noqa: S311 - no secret
    params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    ids, length = range(variant.vocab_size), prompt_tokens or plan.prompt_tokens
    return [
        Request(str(index), variant, tuple(draw.choices(ids, k=length)), params)
        for index in range(number)
    ]


def _at_once(asked: Sequence[Request]) -> list[Timings]:
    """All in the engine from the start, and all prompts in one forward."""
    num_tokens = sum(len(request.prompt_ids) for request in asked)
    engine = Engine(
        EngineLimits(max_num_seqs=len(asked), max_batch_tokens=num_tokens, max_cache_tokens=_ROOM)
    )
    for request in asked:
        engine.add(_now(request))
    ends: dict[str, Timings] = {}
    while engine.has_work:
        ends |= {its.request_id: its.timings for its in engine.step() if its.timings is not None}
    return [ends[request.request_id] for request in asked]


def _now(request: Request) -> Request:
    """As if it had come just now, and not when all were made."""
    return replace(request, arrived_s=time.monotonic())


async def _closed_loop(asked: Sequence[Request], concurrency: int) -> list[Timings]:
    limits = EngineLimits(max_num_seqs=concurrency, max_cache_tokens=_ROOM)
    engine = AsyncEngine(Engine(limits), max_waiting=len(asked), max_waiting_tokens=_ROOM)
    waiting, ends = iter(asked), dict[str, Timings]()

    async def client() -> None:
        for request in waiting:
            async with engine.stream(_now(request)) as events:
                async for event in events:
                    if event.timings is not None:
                        ends[request.request_id] = event.timings

    engine.start()
    try:
        await asyncio.gather(*(client() for _ in range(concurrency)))
    finally:
        await engine.stop()
    return [ends[request.request_id] for request in asked]
