"""A healed model in the engine, with the adapter applied beside the weights or merged into its own.

Unmerged it shares all weights with the dense model and makes two thin products more in each layer.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.compare.speedup import alternate
from app.engine.variant import make_variant
from benchmarks.steady import SteadyBatch, steady_output_len
from benchmarks.workload import Prompts
from pruning.healing.adapter import Adapter
from pruning.models.blocks import Own, view
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks

_TURNS, _STEPS = 9, 8  # of each side; decode steps of a turn
_PROMPT_LEN = 64


def steps_of(
    dense: DenseModel, keep: Blocks, merged: Own, adapter: Adapter, sequences: Sequence[int]
) -> dict[str, Any]:
    """Seconds of decode steps of both, in turns, and the bytes that each has of its own."""
    sides = {"merged": view(dense.model, keep, merged), "unmerged": adapter.model}
    return {
        "bytes": {
            "merged": sum(tensor.nbytes for tensor in merged.values()),
            "unmerged": adapter.num_bytes,
        },
        "steps": [_steps(sides, dense.tokenizer, number) for number in sequences],
    }


def _steps(
    sides: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, number: int
) -> dict[str, Any]:
    output_len = steady_output_len(number, (_TURNS + 1) * _STEPS)
    requests = Prompts(tokenizer, 0).uniform(number, _PROMPT_LEN, output_len)
    batches = {
        name: SteadyBatch(make_variant(name, name, model), requests)
        for name, model in sides.items()
    }
    times_s: dict[str, list[float]] = {name: [] for name in sides}
    for _, name in alternate(list(sides), _TURNS):
        times_s[name].append(median(batches[name].step_s() for _ in range(_STEPS)))
    ratios = [unmerged / merged for merged, unmerged in zip(*times_s.values(), strict=True)]
    return {
        "sequences": number,
        "unmerged_over_merged": median(ratios),
        "step_s": {name: median(values) for name, values in times_s.items()},
    }
