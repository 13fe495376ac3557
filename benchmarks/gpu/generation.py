"""Generation: against transformers and vLLM, and pruned against dense."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from app.bench.plan import without
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant, make_variant
from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.search import checkpoint
from benchmarks.gpu.steps import room_for
from benchmarks.latencies import SideRunner, rate, ratio, run_in_turn
from benchmarks.offline import run_engine, run_static
from benchmarks.peers import PROGRAMS, SLEB, closed_loops, missing, rows
from benchmarks.plan import Baseline
from benchmarks.servers import sleb_serve, vllm_serve
from benchmarks.workload import SampleRequest

_NAME = "random"
_TURNS = 2  # of a comparison that takes half a minute on one GPU
_DTYPE = "bfloat16"
_HALF = ("--gpu-memory-utilization", "0.45")  # the other half is for the service
# Of 16 of 80 blocks of LLaMA-2-70B on two A100: tables 1 and 2 of the paper.
PAPER = {"generation": 1.27, "prompt": 1.26}


def generate(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Requests of one length, all at once: tokens per second of the engine over ``generate``'s."""
    requests = _batch(model, plan)
    sides: dict[str, SideRunner] = {
        "engine": _side(make_variant(_NAME, _NAME, model), requests),
        "generate": partial(run_static, model, batch_size=len(requests)),
    }
    passes = run_in_turn(sides, requests, _TURNS)
    return {
        **{f"{name}_tokens_per_s": rate(timed) for name, timed in passes.items()},
        "ratio": ratio(passes, "engine", "generate"),
    }


def pruned(model: PreTrainedModel, plan: GpuPlan) -> dict[str, Any]:
    """Speed-ups without a fifth of the blocks, at the sizes that the paper measures.

    Generation is a batch of many sequences, and the prompt is one long sequence, which is not split
    and has one new token.
    """
    dense = make_variant(_NAME, _NAME, model)
    cut = without(dense, range(1, 1 + plan.num_removed))  # all blocks take the same time
    variants = {"dense": dense, "pruned": cut}
    batch = _batch(model, plan)
    passes = run_in_turn(
        {name: _side(each, batch) for name, each in variants.items()}, batch, _TURNS
    )
    longest = plan.long_prompt_len
    prompt = plan.requests(model.config.vocab_size, 1, longest, 1)
    prompts = run_in_turn(
        {name: _side(each, prompt, max_batch_tokens=longest) for name, each in variants.items()},
        prompt,
        plan.turns,
    )
    return {
        "num_blocks": len(dense.keep),
        "num_removed": plan.num_removed,
        "generation": ratio(passes, "pruned", "dense"),
        "dense_tokens_per_s": rate(passes["dense"]),
        "prompt": ratio(prompts, "pruned", "dense"),
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


def _batch(model: PreTrainedModel, plan: GpuPlan) -> list[SampleRequest]:
    vocab_size = model.config.vocab_size
    return plan.requests(vocab_size, plan.num_requests, plan.prompt_len, plan.output_len)


def _side(variant: Variant, requests: Sequence[SampleRequest], **more: int) -> SideRunner:
    """An engine that records no more, and takes no more memory, than these requests need."""
    room = room_for(variant, requests)
    limits = EngineLimits(max_num_seqs=len(requests), **room, **more)
    return partial(
        run_engine, variant, concurrency=len(requests), make_engine=partial(Engine, limits)
    )
