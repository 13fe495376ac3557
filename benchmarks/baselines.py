"""The baseline of transformers: ``generate`` on the same weights."""

import time
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks.latencies import Pass, RequestTiming
from benchmarks.offline import checked_timing
from benchmarks.workload import SampleRequest

_NO_EOS = -1  # matches no token, so every output has its full length, at no cost
_PAD = 0


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
