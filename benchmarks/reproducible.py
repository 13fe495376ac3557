"""Reproducible outputs: whether any bit differs under random schedules, and what the mode costs.

A schedule has requests to a model and to a variant of it, which arrive and are cancelled at random,
in batches and chunks of random sizes. Each output is compared with that of its request alone. Half
of the schedules run in a process of their own, as after a restart.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from app.engine.autotuning import Autotuner
from app.engine.engine import Engine
from app.engine.kernels.compiled.openmp import keep_compiled_in
from app.engine.running.prepared_kernels import REPRODUCIBLE
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, SamplingParams
from app.engine.variant import Variant, make_variant
from benchmarks.model import model_store
from benchmarks.reports import facts, write
from benchmarks.steady import SteadyBatch, steady_output_len, steps_in_turn
from benchmarks.workload import Prompts, SampleRequest
from pruning.config import Settings
from pruning.models.demo_model import NAME
from pruning.models.store import LoadedModel, set_up_torch

_NUM_REMOVED = 6
_NUM_REQUESTS = 48  # that schedules draw from
_MAX_RATIO = 1.35  # of a step's time over that of a default one
_SIDES = ("reproducible", "default")

Output = list[tuple[int, float | None]]  # tokens and log-probabilities


@dataclass(frozen=True)
class Differences:
    schedules: int
    outputs: int
    tokens: int
    differing_tokens: int
    differing_logprobs: int


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = NAME,
    schedules: Annotated[int, typer.Option(min=2)] = 300,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a turn.")] = 8,
    seed: int = 0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = loaded_model(model)
    costs = {
        f"{number} sequences": _cost(loaded, number, (turns, steps), seed) for number in (1, 32)
    }
    alone = expected(loaded, seed)
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        file = Path(directory) / "alone.pickle"
        file.write_bytes(pickle.dumps(alone))
        first = compared(loaded, alone, range(schedules // 2), seed)
        command = [sys.executable, "-c", _AGAIN, str(file), model, str(schedules), str(seed)]
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        second = Differences(**json.loads(again.stdout.splitlines()[-1]))
    report: dict[str, Any] = {
        "schedules": {"first process": vars(first), "after a restart": vars(second)},
        "step": costs,
        "passes": not (first.differing_logprobs or second.differing_logprobs)
        and all(cost["ratio"] <= _MAX_RATIO for cost in costs.values()),
        **facts("reproducible"),
    }
    write(report, out)
    Console().print_json(json.dumps({key: report[key] for key in ("schedules", "step", "passes")}))


# The rest of the schedules, in another process.
_AGAIN = """
import json, pickle, sys
from pathlib import Path
from benchmarks.reproducible import compared, loaded_model
file, model, schedules, seed = sys.argv[1:]
loaded = loaded_model(model)
alone = pickle.loads(Path(file).read_bytes())
numbers = range(int(schedules) // 2, int(schedules))
print(json.dumps(vars(compared(loaded, alone, numbers, int(seed)))))
"""


def loaded_model(name: str) -> LoadedModel:
    """The model in bfloat16, in a process that keeps what it compiles."""
    settings = Settings()
    set_up_torch(settings.threads)
    keep_compiled_in(settings.data_dir)
    return model_store(name).load(name, dtype="bfloat16", device="cpu")


def expected(loaded: LoadedModel, seed: int) -> list[Output]:
    """The output of each request when it runs alone."""
    requests, engine = _requests(loaded, seed), _engine(EngineLimits())
    outputs = []
    for request in requests:
        engine.add(request)
        outputs.append(_outputs(engine, {})[request.request_id])
    return outputs


def compared(
    loaded: LoadedModel, alone: Sequence[Output], schedules: range, seed: int
) -> Differences:
    """Run these schedules, and count what differs from the requests alone."""
    requests = _requests(loaded, seed)
    num_outputs = num_tokens = num_tokens_off = num_logprobs_off = 0
    for schedule in schedules:
        for request_id, output in _played(requests, Random(f"{seed} {schedule}")).items():  # noqa: S311
            pairs = list(zip(output, alone[int(request_id)], strict=False))
            num_outputs += 1
            num_tokens += len(pairs)
            num_tokens_off += sum(found[0] != known[0] for found, known in pairs)
            num_logprobs_off += sum(found[1] != known[1] for found, known in pairs)
    return Differences(len(schedules), num_outputs, num_tokens, num_tokens_off, num_logprobs_off)


def _played(requests: Sequence[Request], draw: Random) -> dict[str, Output]:
    """The outputs of one schedule, of cancelled requests as far as they came."""
    limits = EngineLimits(
        max_num_seqs=draw.choice([2, 8, 32]), max_batch_tokens=draw.choice([48, 128, 512])
    )
    engine = _engine(limits)
    arriving = draw.sample(requests, draw.randint(2, 32))
    arrivals = sorted((draw.randint(0, 12), number) for number in range(len(arriving)))
    cancels = {
        draw.randint(1, 30): request.request_id for request in arriving if draw.random() < 0.2
    }
    outputs: dict[str, Output] = {}
    step = 0
    while arrivals or engine.has_work:
        while arrivals and arrivals[0][0] <= step:
            engine.add(arriving[arrivals.pop(0)[1]])
        if step in cancels:
            engine.cancel(cancels[step])
        _take(engine, outputs)
        step += 1
    return outputs


def _outputs(engine: Engine, outputs: dict[str, Output]) -> Mapping[str, Output]:
    while engine.has_work:
        _take(engine, outputs)
    return outputs


def _take(engine: Engine, outputs: dict[str, Output]) -> None:
    for event in engine.step():
        if event.token_id is not None:
            outputs.setdefault(event.request_id, []).append((event.token_id, event.logprob))


def _engine(limits: EngineLimits) -> Engine:
    return Engine(limits, tuner=Autotuner(always=REPRODUCIBLE), is_reproducible=True)


def _requests(loaded: LoadedModel, seed: int) -> list[Request]:
    """Requests to both variants, greedy and sampled, with log-probabilities."""
    draw, prompts = Random(seed), Prompts(loaded.tokenizer, seed)  # noqa: S311
    variants = _variants(loaded)
    samples = prompts.mixed(_NUM_REQUESTS - 2, (1, 90), (4, 24)) + prompts.uniform(2, 600, 8)
    return [
        Request(
            str(number),
            draw.choice(variants),
            sample.prompt_ids,
            SamplingParams(
                max_new_tokens=sample.num_new_tokens,
                ignore_eos=True,
                num_logprobs=1,
                temperature=draw.choice([0.0, 0.8]),
                seed=number,
            ),
        )
        for number, sample in enumerate(samples)
    ]


def _variants(loaded: LoadedModel) -> list[Variant]:
    dense = make_variant("dense", "dense", loaded.model)
    keep = [*range(10), *range(10 + _NUM_REMOVED, len(dense.keep))]
    variants = [dense, make_variant(f"dense@-{_NUM_REMOVED}", "dense", loaded.model, keep)]
    _engine(EngineLimits()).kernels.finish(*variants)
    return variants


def _cost(loaded: LoadedModel, number: int, sizes: tuple[int, int], seed: int) -> dict[str, float]:
    """Seconds of a decode step of each side, and the median of the ratios of adjacent turns."""
    turns, steps = sizes
    dense, tuner = make_variant("dense", "dense", loaded.model), Autotuner()
    output_len = steady_output_len(number, (turns + 1) * steps)
    samples = Prompts(loaded.tokenizer, seed).uniform(number, 64, output_len)
    batches = {
        side: SteadyBatch(
            dense,
            samples,
            partial(_warm_engine, dense, tuner),
            partial(_asked, is_reproducible=side == "reproducible"),
        )
        for side in _SIDES
    }
    found = steps_in_turn(batches, turns, steps)
    seconds = {side: round(step_s, 6) for side, step_s in found["step_s"].items()}
    return {**seconds, "ratio": round(found["ratio"], 4)}


def _warm_engine(variant: Variant, tuner: Autotuner, limits: EngineLimits) -> Engine:
    engine = Engine(limits, tuner=tuner)
    engine.kernels.finish(variant)
    return engine


def _asked(
    variant: Variant, samples: Sequence[SampleRequest], *, is_reproducible: bool
) -> list[Request]:
    return [
        Request(
            str(number),
            variant,
            sample.prompt_ids,
            SamplingParams(
                max_new_tokens=sample.num_new_tokens, ignore_eos=True, reproducible=is_reproducible
            ),
        )
        for number, sample in enumerate(samples)
    ]


if __name__ == "__main__":
    typer.run(main)
