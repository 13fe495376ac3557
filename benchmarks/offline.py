"""The parts of the serving benchmark without HTTP: the engine against ``generate`` of transformers.

Both are driven in this process, without text or threads, on the same weights.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from app.engine.engine import Engine
from app.engine.scheduling.sequence import Request, SamplingParams
from app.engine.variant import Variant
from benchmarks.bandwidth import weights_floor
from benchmarks.latencies import (
    Pass,
    RequestTiming,
    SideRunner,
    median_tpot_s,
    performance,
    ratio,
    run_in_turn,
    throughput,
)
from benchmarks.plan import Baseline, PartResult, ServePlan, ServeSubject
from benchmarks.workload import SampleRequest

_STATIC_BATCH = 64
_NUM_SINGLE = 2  # requests sent one at a time
_NO_EOS = -1  # matches no token, so every output has its full length, at no cost
_PAD = 0


class WrongLength(RuntimeError):
    """A response has more or fewer tokens than requested."""


def run_engine(
    variant: Variant,
    requests: Sequence[SampleRequest],
    concurrency: int,
    make_engine: Callable[[], Engine] = Engine,
) -> Pass:
    """Complete all requests, with up to ``concurrency`` of them in the engine at any time."""
    engine = make_engine()
    engine.kernels.finish(variant)
    waiting = deque(engine_requests(variant, requests))
    sent_s: list[float] = []
    received_s: dict[str, list[float]] = {}
    num_open = 0
    began_s = time.perf_counter()
    while waiting or num_open:
        while waiting and num_open < concurrency:
            received_s[waiting[0].request_id] = []
            sent_s.append(time.perf_counter())
            engine.add(waiting.popleft())
            num_open += 1
        events, now_s = engine.step(), time.perf_counter()
        for event in events:
            if event.token_id is not None:
                received_s[event.request_id].append(now_s)
            if event.finish_reason is not None:
                num_open -= 1
    seconds = time.perf_counter() - began_s
    each = zip(sent_s, received_s.values(), requests, strict=True)
    return Pass(seconds, tuple(checked_timing(*of_request) for of_request in each))


def engine_requests(variant: Variant, requests: Sequence[SampleRequest]) -> list[Request]:
    """Greedy engine requests that ignore the end-of-sequence token."""
    return [
        Request(
            str(number),
            variant,
            request.prompt_ids,
            SamplingParams(max_new_tokens=request.num_new_tokens, ignore_eos=True),
        )
        for number, request in enumerate(requests)
    ]


def checked_timing(
    sent_s: float,
    received_s: Sequence[float],
    request: SampleRequest,
    num_tokens: int | None = None,
) -> RequestTiming:
    """The timing of a request. Raises ``WrongLength``.

    Without ``num_tokens`` every time stands for one token.
    """
    num_tokens = len(received_s) if num_tokens is None else num_tokens
    if num_tokens != request.num_new_tokens:
        raise WrongLength(
            f"expected {request.num_new_tokens} tokens, got {num_tokens}: rates would be wrong"
        )
    return RequestTiming(sent_s, tuple(received_s), num_tokens)


def run_static(model: PreTrainedModel, requests: Sequence[SampleRequest], batch_size: int) -> Pass:
    """``generate`` on left-padded batches, each of which runs to its longest output.

    Only the requested tokens count.
    """
    timings: list[RequestTiming] = []
    began_s = time.perf_counter()
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        _generate(model, batch)
        now_s = time.perf_counter()
        timings += [RequestTiming(began_s, (now_s,), request.num_new_tokens) for request in batch]
    return Pass(time.perf_counter() - began_s, tuple(timings))


def run_sequential(model: PreTrainedModel, requests: Sequence[SampleRequest]) -> Pass:
    """``generate`` on one request at a time."""
    timings: list[RequestTiming] = []
    began_s = time.perf_counter()
    for request in requests:
        sent_s, token_times = time.perf_counter(), _TokenTimes()
        _generate(model, [request], token_times)
        timings.append(checked_timing(sent_s, token_times.received_s, request))
    return Pass(time.perf_counter() - began_s, tuple(timings))


def _generate(
    model: PreTrainedModel, batch: Sequence[SampleRequest], streamer: BaseStreamer | None = None
) -> None:
    assert isinstance(model, GenerationMixin)
    width = max(len(request.prompt_ids) for request in batch)
    pads = [width - len(request.prompt_ids) for request in batch]
    padded = [
        [_PAD] * pad + [*request.prompt_ids] for pad, request in zip(pads, batch, strict=True)
    ]
    masks = [[0] * pad + [1] * (width - pad) for pad in pads]
    num_new_tokens = max(request.num_new_tokens for request in batch)
    output = model.generate(
        torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=num_new_tokens, eos_token_id=_NO_EOS, pad_token_id=_PAD
        ),
        streamer=streamer,
    )
    assert output.shape == (len(batch), width + num_new_tokens), output.shape


class _TokenTimes(BaseStreamer):
    """Records when the tokens of one sequence arrive."""

    def __init__(self) -> None:
        self.received_s: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 - named by the base class
        if self._has_prompt:
            self.received_s.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        pass


def offline(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of one length, all added at the start."""
    requests = subject.prompts(plan).uniform(plan.num_requests, plan.prompt_len, plan.output_len)
    return _over_static("offline_vs_generate", subject, plan, requests)


def mixed(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of many lengths. Static batches run to their longest output."""
    requests = subject.prompts(plan).mixed(
        plan.num_mixed, plan.mixed_prompt_lens, plan.mixed_output_lens
    )
    return _over_static("offline_mixed_vs_static", subject, plan, requests)


def _over_static(
    name: str, subject: ServeSubject, plan: ServePlan, requests: Sequence[SampleRequest]
) -> PartResult:
    generate = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    passes = _passes(subject, plan, requests, len(requests), generate)
    details = {side: throughput(timed) for side, timed in passes.items()}
    details["engine"] = performance(passes["engine"])
    return PartResult(details, {name: ratio(passes, "engine", "generate")})


def batch1(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """One request at a time. The ratio is that of the time per output token."""
    requests = subject.prompts(plan).uniform(_NUM_SINGLE, plan.prompt_len, plan.output_len)
    passes = _passes(subject, plan, requests, 1, partial(run_sequential, subject.dense.model))
    tpots_s = {name: median_tpot_s(timed) for name, timed in passes.items()}
    gain = tpots_s["generate"] / tpots_s["engine"] if "generate" in tpots_s else None
    details: dict[str, object] = {name: performance(timed) for name, timed in passes.items()}
    floor = weights_floor(subject.dense.model)
    return PartResult(
        details | {"floor": asdict(floor)},
        {"batch1_vs_generate": gain, "batch1_vs_floor": tpots_s["engine"] / floor.seconds},
    )


def _passes(
    subject: ServeSubject,
    plan: ServePlan,
    requests: Sequence[SampleRequest],
    concurrency: int,
    generate: SideRunner,
) -> dict[str, list[Pass]]:
    """Turns of the engine, and of ``generate`` if it is asked for."""
    make_engine = partial(Engine, tuner=subject.tuner)
    engine = partial(run_engine, subject.dense, concurrency=concurrency, make_engine=make_engine)
    sides: dict[str, SideRunner] = {"engine": engine}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = generate
    return run_in_turn(sides, requests, plan.repeats)
