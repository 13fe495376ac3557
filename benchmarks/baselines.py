"""The baselines that transformers offers, on the same weights."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import (
    ContinuousBatchingConfig,
    ContinuousBatchingManager,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.utils import WorkloadHints
from transformers.generation.streamers import BaseStreamer

from benchmarks.latencies import Pass, RequestTiming
from benchmarks.offline import checked_timing
from benchmarks.workload import SampleRequest
from pruning.models.blocks import num_blocks, view

_NO_EOS = -1  # matches no token, so every output has its full length, at no cost
_PAD = 0


class BaselineFailed(RuntimeError):
    """A baseline stopped before all its requests were complete."""


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
        generation_config=_greedy(num_new_tokens),
        streamer=streamer,
    )
    assert output.shape == (len(batch), width + num_new_tokens), output.shape


def _greedy(num_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False, max_new_tokens=num_new_tokens, eos_token_id=_NO_EOS, pad_token_id=_PAD
    )


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


def run_continuous(model: PreTrainedModel, requests: Sequence[SampleRequest]) -> Pass:
    """transformers' continuous batching, with cache pages for all requests at once.

    It is set up for each pass and warmed up before the clock starts, because its thread is never
    idle and would slow down the other sides. It gets a view, as it may switch the attention.
    """
    shell = view(model, range(num_blocks(model)))
    assert isinstance(shell, GenerationMixin)
    prompt_len = max(len(request.prompt_ids) for request in requests)
    output_len = max(request.num_new_tokens for request in requests)
    config = ContinuousBatchingConfig(
        # The default takes most of the memory.
        num_blocks=len(requests) * pages_of(prompt_len + output_len),
        allow_block_sharing=False,  # otherwise a second pass hits the prefix cache
    )
    with shell.continuous_batching_context_manager(
        generation_config=_greedy(output_len),
        continuous_batching_config=config,
        workload_hints=WorkloadHints(prompt_len, output_len, len(requests)),
    ) as manager:
        _run_managed(manager, [replace(requests[0], num_new_tokens=1)])
        return _run_managed(manager, requests)


def pages_of(num_tokens: int) -> int:
    """Cache pages that one sequence of this length needs."""
    return -(-num_tokens // ContinuousBatchingConfig().page_size)


def _run_managed(manager: ContinuousBatchingManager, requests: Sequence[SampleRequest]) -> Pass:
    began_s = time.perf_counter()
    pending: dict[str | None, SampleRequest] = {
        manager.add_request([*request.prompt_ids], max_new_tokens=request.num_new_tokens): request
        for request in requests
    }
    timings: list[RequestTiming] = []
    while pending:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise BaselineFailed("transformers' continuous batching stopped with an error")
        elif result.is_finished():
            now_s = time.perf_counter()
            request = pending.pop(result.request_id)
            timings.append(checked_timing(began_s, (now_s,), request, len(result.generated_tokens)))
    return Pass(time.perf_counter() - began_s, tuple(timings))
