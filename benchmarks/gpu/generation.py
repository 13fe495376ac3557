"""Generation: against transformers and vLLM, and pruned against dense."""

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from app.bench.plan import without
from app.compare.speedup import alternate
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant, make_variant
from benchmarks.baselines import run_static
from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.search import checkpoint
from benchmarks.gpu.steps import room_for
from benchmarks.latencies import SideRunner, rate, ratio, run_in_turn
from benchmarks.offline import engine_requests, run_engine
from benchmarks.peers import PROGRAMS, SLEB, closed_loops, missing, rows
from benchmarks.plan import Baseline
from benchmarks.servers import sleb_serve, vllm_serve

_NAME = "random"
_TURNS = 2  # of a comparison that takes half a minute on one GPU
_DTYPE = "bfloat16"
_HALF = ("--gpu-memory-utilization", "0.45")  # the other half is for the service
# Of 16 of 80 blocks of LLaMA-2-70B on two A100: tables 1 and 2 of the paper.
PAPER = {"generation": 1.27, "prompt": 1.26}


def generate(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Requests of one length, all at once: tokens per second of the engine over ``generate``'s."""
    requests = plan.requests(
        model.config.vocab_size, plan.num_requests, plan.prompt_len, plan.output_len
    )
    dense = make_variant(_NAME, _NAME, model)
    make_engine = partial(Engine, _limits(dense, plan))
    sides: dict[str, SideRunner] = {
        "engine": partial(run_engine, dense, concurrency=len(requests), make_engine=make_engine),
        "generate": partial(run_static, model, batch_size=len(requests)),
    }
    passes = run_in_turn(sides, requests, _TURNS)
    return {
        **{f"{name}_tokens_per_s": rate(timed) for name, timed in passes.items()},
        "ratio": ratio(passes, "engine", "generate"),
    }


def pruned(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Speed-ups without a fifth of the blocks, at the sizes that the paper measures.

    Generation is a batch of many sequences, and the prompt is one long sequence.
    """
    dense = make_variant(_NAME, _NAME, model)
    every = len(dense.keep)
    cut = without(dense, range(1, 1 + plan.num_removed))  # all blocks take the same time
    batch = plan.requests(
        model.config.vocab_size, plan.num_requests, plan.prompt_len, plan.output_len
    )
    sides: dict[str, SideRunner] = {
        name: partial(
            run_engine,
            variant,
            concurrency=len(batch),
            make_engine=partial(Engine, _limits(variant, plan)),
        )
        for name, variant in (("dense", dense), ("pruned", cut))
    }
    passes = run_in_turn(sides, batch, _TURNS)
    prompts = {"dense": partial(_prompt_s, dense, plan), "pruned": partial(_prompt_s, cut, plan)}
    return {
        "num_blocks": every,
        "num_removed": plan.num_removed,
        "generation": ratio(passes, "pruned", "dense"),
        "dense_tokens_per_s": rate(passes["dense"]),
        "prompt": _speedup(prompts, plan.turns),
        "paper": PAPER,
    }


def vllm(plan: GpuPlan) -> dict[str, Any]:
    """Our figures over those of vLLM, by number of clients; a message if there is no vLLM."""
    program = shutil.which(PROGRAMS[Baseline.VLLM])
    if program is None:
        return {"left_out": missing(Baseline.VLLM)}
    max_len, most = plan.prompt_len + plan.output_len, max(plan.concurrency)
    with checkpoint(plan.served_shape, plan) as path:
        starts = {
            SLEB: partial(sleb_serve, path, _DTYPE, None),
            Baseline.VLLM: partial(
                vllm_serve, Path(program), path, _DTYPE, None, max_len, most, _HALF
            ),
        }
        vocab_size = plan.served_shape["vocab_size"]
        requests = partial(
            plan.requests, vocab_size, prompt_len=plan.prompt_len, output_len=plan.output_len
        )
        closed = closed_loops(starts, requests, plan.concurrency, _TURNS)
    return {"rows": rows(closed, Baseline.VLLM)}


def _limits(variant: Variant, plan: GpuPlan) -> EngineLimits:
    """No more is recorded, and no more memory taken, than these requests need."""
    of = plan.requests(variant.vocab_size, plan.num_requests, plan.prompt_len, plan.output_len)
    return EngineLimits(max_num_seqs=len(of), **room_for(variant, of))


def _speedup(sides: Mapping[str, Callable[[], float]], turns: int) -> float:
    """The median ratio of dense over pruned, in pairs of turns after one of warm-up."""
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _, name in alternate(list(sides), turns):
        times[name].append(sides[name]())
    return median(a / b for a, b in zip(times["dense"], times["pruned"], strict=True))


def _prompt_s(variant: Variant, plan: GpuPlan) -> float:
    """Seconds until the first token of one long prompt, which is not split."""
    [one] = plan.requests(variant.vocab_size, 1, plan.long_prompt_len, 1)
    limits = EngineLimits(max_batch_tokens=plan.long_prompt_len, **room_for(variant, [one]))
    engine = Engine(limits)
    [request] = engine_requests(variant, [one])
    engine.add(request)
    began_s = time.perf_counter()
    engine.step()  # its token is on the host at the end, so that no kernel still runs
    seconds = time.perf_counter() - began_s
    if variant.model.device.type == "cuda":
        torch.cuda.synchronize(variant.model.device)
    return seconds
