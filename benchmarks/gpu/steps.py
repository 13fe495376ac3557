"""Decode steps by number of sequences: with and without CUDA graphs, and with int8 weights.

In the steady state of an engine: all prompts are prefilled, and all sequences decode.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from app.engine.cache.paged_cache import unit_shape
from app.engine.cache.pages import pages_of
from app.engine.engine import Engine
from app.engine.kernels.int8 import chosen_names, int8_model
from app.engine.running.cuda_graphs import no_recorder
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant, make_variant
from benchmarks.bandwidth import weights_floor
from benchmarks.gpu.plan import GpuPlan
from benchmarks.offline import engine_requests
from benchmarks.workload import SampleRequest
from pruning.models.blocks import num_blocks
from pruning.models.quantize import quantized_layers

_NAME = "random"
MakeEngine = Callable[..., Engine]
GRAPHS, PLAIN, INT8 = "graphs", "one kernel at a time", "int8"


def steps(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Milliseconds of a step in alternating turns, beside the time to read all weights."""
    floor = weights_floor(model)
    dense, floor_ms = make_variant(_NAME, _NAME, model), 1e3 * floor.seconds
    plain = partial(Engine, recorder=no_recorder)
    rows = [
        {**row, "floor_ms": floor_ms, "over_floor": row[f"{GRAPHS}_ms"] / floor_ms}
        for row in _rows({PLAIN: (dense, plain), GRAPHS: (dense, Engine)}, plan.batch_sizes, plan)
    ]
    return {"bytes_per_s": floor.bytes_per_s, "weight_bytes": floor.weight_bytes, "rows": rows}


def int8(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Steps with int8 weights in the blocks beside those with plain ones."""
    made = int8_model(model)
    plain, rounded = (make_variant(_NAME, _NAME, model), make_variant(f"{_NAME}+int8", _NAME, made))
    sides = {PLAIN: (plain, Engine), INT8: (rounded, Engine)}
    return {
        "rows": list(_rows(sides, plan.int8_batch_sizes, plan)),
        "products": chosen_names(quantized_layers(made)),
        "own_bytes": rounded.own_bytes,
    }


def _rows(
    sides: Mapping[str, tuple[Variant, MakeEngine]], sizes: Sequence[int], plan: GpuPlan
) -> Iterator[dict[str, float]]:
    """Median milliseconds of a step of both sides by batch size, and the ratio of the first to the
    second.

    They alternate, after three steps of warm-up.
    """
    for number in sizes:
        turns = [*zip(*(_steps_ms(*side, plan, number) for side in sides.values()), strict=True)]
        first, second = (median(times) for times in zip(*turns, strict=True))
        times = {f"{name}_ms": ms for name, ms in zip(sides, (first, second), strict=True)}
        yield {"sequences": number, **times, "ratio": first / second}


def _steps_ms(
    variant: Variant, make_engine: MakeEngine, plan: GpuPlan, number: int
) -> Iterator[float]:
    """Milliseconds of each step of a batch whose prompts are prefilled and whose sequences all
    decode, after three that do not count."""
    output_len = 3 + plan.num_steps + 2 * number + 2  # some decode while others are prefilled
    requests = plan.requests(variant.vocab_size, number, plan.prompt_len, output_len)
    limits = EngineLimits(
        max_num_seqs=number,
        max_batch_tokens=plan.prompt_len,  # no prompt is split
        **room_for(variant, requests),
    )
    engine = make_engine(limits)
    engine.kernels.finish(variant)
    for request in engine_requests(variant, requests):
        engine.add(request)
    started: set[str] = set()
    while len(started) < number:
        started |= {event.request_id for event in engine.step()}
    for step in range(3 + plan.num_steps):
        began_s = time.perf_counter()
        events = engine.step()
        step_ms = 1e3 * (time.perf_counter() - began_s)
        assert len(events) == number, "a sequence finished"
        if step >= 3:
            yield step_ms


def room_for(variant: Variant, requests: Sequence[SampleRequest]) -> dict[str, int]:
    """Limits of an engine that runs these requests at once, and leaves a card to other engines."""
    longest = max(len(request.prompt_ids) + request.num_new_tokens for request in requests)
    num_units = len(requests) * pages_of(longest) * num_blocks(variant.model) + 1  # of padding
    return {
        "max_model_len": longest,
        "kv_cache_bytes": num_units * unit_shape(variant.model).num_bytes,
    }
