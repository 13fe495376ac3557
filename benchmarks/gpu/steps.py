"""Decode steps by number of sequences: with and without CUDA graphs, and with int8 weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.kernels.int8 import chosen_names, int8_model
from app.engine.running.cuda_graphs import no_recorder
from app.engine.variant import Variant, make_variant
from benchmarks.bandwidth import Floor, weights_floor
from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.steady import SteadyBatch, median_steps_s, steady_output_len
from pruning.models.quantize import quantized_layers

_NAME = "random"
MakeEngine = Callable[..., Engine]
GRAPHS, PLAIN, INT8 = "graphs", "one kernel at a time", "int8"


def steps(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Milliseconds of a step in alternating turns, beside the time to read all weights."""
    floor = weights_floor(model)
    dense = make_variant(_NAME, _NAME, model)
    engines: Mapping[str, MakeEngine] = {
        GRAPHS: Engine,
        PLAIN: partial(Engine, recorder=no_recorder),
    }
    rows = []
    for number in plan.batch_sizes:
        batches = {name: _steady(dense, plan, number, make) for name, make in engines.items()}
        found = median_steps_s(batches, plan.num_steps)
        rows.append(_row(number, floor, found) | {"ratio": found[PLAIN] / found[GRAPHS]})
    return {"bytes_per_s": floor.bytes_per_s, "weight_bytes": floor.weight_bytes, "rows": rows}


def int8(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Steps with int8 weights in the blocks beside those with plain ones."""
    made = int8_model(model)
    sides = {
        PLAIN: make_variant(_NAME, _NAME, model),
        INT8: make_variant(f"{_NAME}+int8", _NAME, made),
    }
    rows = []
    for number in plan.int8_batch_sizes:
        batches = {name: _steady(side, plan, number, Engine) for name, side in sides.items()}
        found = median_steps_s(batches, plan.num_steps)
        rows.append({"sequences": number, **_ms(found), "ratio": found[PLAIN] / found[INT8]})
    return {
        "rows": rows,
        "products": chosen_names(quantized_layers(made)),
        "own_bytes": sides[INT8].own_bytes,
    }


def _steady(variant: Variant, plan: GpuPlan, number: int, make_engine: MakeEngine) -> SteadyBatch:
    """A batch after two steps more."""
    output_len = steady_output_len(number, plan.num_steps + 3)
    requests = plan.requests(variant.vocab_size, number, plan.prompt_len, output_len)
    batch = SteadyBatch(variant, requests, make_engine)
    for _ in range(2):
        batch.step_s()
    return batch


def _row(number: int, floor: Floor, seconds: Mapping[str, float]) -> dict[str, Any]:
    over_floor = seconds[GRAPHS] / floor.seconds
    return {
        "sequences": number,
        **_ms(seconds),
        "floor_ms": 1e3 * floor.seconds,
        "over_floor": over_floor,
    }


def _ms(seconds: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
