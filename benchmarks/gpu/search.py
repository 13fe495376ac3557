"""Rounds of a search at published shapes, and what a whole search would take by them."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.prediction import first_round_passes
from benchmarks.modes import Meter, Mode
from pruning.models.memory import free_bytes
from pruning.models.random_models import random_model, random_tokens
from pruning.models.streaming import StreamedModel

_MODES = ("exact", "staged")


def search(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """One whole round of the exact and of the staged search, on a part of the windows.

    A search takes its first pass and one such round for each block, times the windows. This is an
    upper bound, since later rounds have fewer candidates and resume from earlier ones.
    """
    windows = random_tokens(model, plan.num_windows, plan.seqlen, plan.seed)
    meter = Meter(plan.num_windows)
    handles = meter.attach(model)
    budget, searches = free_bytes(model.device) // 4, dict[str, Any]()
    for name in _MODES:
        mode = Mode(name, model, windows, budget, meter)
        mode.advance()
        [only] = mode.rounds
        times = plan.all_windows / plan.num_windows
        searches[name] = {
            "num_windows": plan.num_windows,
            "seqlen": plan.seqlen,
            "round_s": only.cost.seconds,
            "block_passes": only.cost.block_passes,
            "search_of_windows": plan.all_windows,
            "search_s": times * (mode.dense.seconds + plan.num_removed * only.cost.seconds),
        }
        del mode  # and the hidden states that it keeps
    for handle in handles:
        handle.remove()
    return searches


def stream(plan: GpuPlan) -> dict[str, Any]:
    """A round of a model whose blocks come from disk one at a time, with few of its blocks.

    A round of the whole model takes what is longer, loading every block once or computing.
    """
    with checkpoint(plan.streamed_shape, plan) as path:
        streamed = StreamedModel(path, device=plan.device)
        model, depth = streamed.model, plan.streamed_shape["num_hidden_layers"]
        windows = random_tokens(model, plan.num_windows, plan.seqlen, plan.seed)
        began_s = time.perf_counter()
        for _ in streamed.blocks(range(depth)):
            pass
        load_s = (time.perf_counter() - began_s) / depth
        meter = Meter(plan.num_windows)
        meter.attach(model)
        mode = Mode("stream", streamed, windows, free_bytes(streamed.device) // 4, meter)
        mode.advance()
    [only] = mode.rounds
    pass_s = only.cost.seconds / only.cost.block_passes
    num_passes = first_round_passes(plan.streamed_depth)
    return {
        "num_blocks": depth,
        "num_windows": plan.num_windows,
        "round_s": only.cost.seconds,
        "load_s": load_s,
        "pass_s": pass_s,
        "peak_weight_bytes": streamed.peak_bytes,
        "whole_depth": plan.streamed_depth,
        "whole_round_s": max(plan.streamed_depth * load_s, num_passes * pass_s),
    }


@contextmanager
def checkpoint(shape: Mapping[str, Any], plan: GpuPlan) -> Iterator[Path]:
    """A directory with random weights of this shape, and the smallest tokenizer."""
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        model = random_model(shape, "bfloat16", seed=plan.seed, device=plan.device)
        model.save_pretrained(directory)
        del model
        tokens = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))  # noqa: S106 - no secret
        PreTrainedTokenizerFast(tokenizer_object=tokens).save_pretrained(directory)
        config = Path(directory) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
        yield Path(directory)
