"""What transformers itself offers to generate with, on the same weights."""

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

from benchmarks.latencies import Answered, Pass
from benchmarks.offline import answered
from benchmarks.workload import Ask
from pruning.models.blocks import num_blocks, view

_NO_EOS = -1  # no token: so every answer has its full length, at less cost than by forbidding one
_PAD = 0


class BaselineFailed(RuntimeError):
    """What is compared with has not come to its end."""


def run_static(model: PreTrainedModel, asks: Sequence[Ask], batch_size: int) -> Pass:
    """``generate`` on left-padded batches in order of arrival, each to its longest answer.

    Only the tokens that were asked for count.
    """
    answers: list[Answered] = []
    began_s = time.perf_counter()
    for first in range(0, len(asks), batch_size):
        batch = asks[first : first + batch_size]
        _generate(model, batch)
        now_s = time.perf_counter()
        answers += [Answered(began_s, (now_s,), ask.num_new_tokens) for ask in batch]
    return Pass(time.perf_counter() - began_s, tuple(answers))


def run_one_by_one(model: PreTrainedModel, asks: Sequence[Ask]) -> Pass:
    """``generate`` on one request after the other."""
    answers: list[Answered] = []
    began_s = time.perf_counter()
    for ask in asks:
        sent_s, watch = time.perf_counter(), _Watch()
        _generate(model, [ask], watch)
        answers.append(answered(sent_s, watch.came_s, ask))
    return Pass(time.perf_counter() - began_s, tuple(answers))


def _generate(
    model: PreTrainedModel, batch: Sequence[Ask], streamer: BaseStreamer | None = None
) -> None:
    assert isinstance(model, GenerationMixin)
    width = max(len(ask.prompt_ids) for ask in batch)
    pads = [width - len(ask.prompt_ids) for ask in batch]
    padded = [[_PAD] * pad + [*ask.prompt_ids] for pad, ask in zip(pads, batch, strict=True)]
    masks = [[0] * pad + [1] * (width - pad) for pad in pads]
    num_new_tokens = max(ask.num_new_tokens for ask in batch)
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


class _Watch(BaseStreamer):
    """When the tokens of one sequence came."""

    def __init__(self) -> None:
        self.came_s: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002 the name is the base class's
        if self._has_prompt:
            self.came_s.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        pass


def run_continuous(model: PreTrainedModel, asks: Sequence[Ask]) -> Pass:
    """Its own continuous batching as it comes, with room for all of these at a time.

    Set up for each turn and warmed before its clock starts: its thread is never quite idle, and
    would slow down the other sides. It may change how a model attends, so it gets a view.
    """
    shell = view(model, range(num_blocks(model)))
    assert isinstance(shell, GenerationMixin)
    prompt_len = max(len(ask.prompt_ids) for ask in asks)
    output_len = max(ask.num_new_tokens for ask in asks)
    config = ContinuousBatchingConfig(
        num_blocks=len(asks) * pages_of(prompt_len + output_len),  # or it takes most of the memory
        allow_block_sharing=False,  # or a second pass would be free
    )
    with shell.continuous_batching_context_manager(
        generation_config=_greedy(output_len),
        continuous_batching_config=config,
        workload_hints=WorkloadHints(prompt_len, output_len, len(asks)),
    ) as manager:
        _run_managed(manager, [replace(asks[0], num_new_tokens=1)])
        return _run_managed(manager, asks)


def pages_of(num_tokens: int) -> int:
    """Pages of its cache that one sequence needs."""
    return -(-num_tokens // ContinuousBatchingConfig().page_size)


def _run_managed(manager: ContinuousBatchingManager, asks: Sequence[Ask]) -> Pass:
    began_s = time.perf_counter()
    wanted: dict[str | None, Ask] = {
        manager.add_request([*ask.prompt_ids], max_new_tokens=ask.num_new_tokens): ask
        for ask in asks
    }
    answers: list[Answered] = []
    while wanted:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise BaselineFailed("transformers' continuous batching has ended with an error")
        elif result.is_finished():
            now_s = time.perf_counter()
            ask = wanted.pop(result.request_id)
            answers.append(answered(began_s, (now_s,), ask, len(result.generated_tokens)))
    return Pass(time.perf_counter() - began_s, tuple(answers))
