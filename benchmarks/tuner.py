"""The rule by which the tuner chooses kernels, and the one before it, on the same times.

Trials are made again and again, alone and beside a busy process on each core. Each rule chooses
from the times of one trial, as the tuner does. True times are the shortest of all quiet trials.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import psutil
import torch
import typer
from transformers import AutoModelForCausalLM

from app.engine.autotuning import Autotuner, Times, Trial, chosen, timed
from app.engine.running.flat_model import flat_model, functions_of_steps
from benchmarks.reports import facts, model_store, write
from pruning.models.demo_model import NAME

_ROWS, _PROMPT, _TOKENS = 64, 256, 1024
_BUSY = "while True: pass"
_SLOWER = 1.05  # times the fastest: a kernel that is not chosen by chance among equal ones
# Of the rule before: what a kernel had to stay below, and the share of all cores of others.
_WORTH, _WORTH_DISTURBED, _MAX_OTHERS = 0.95, 0.7, 0.05


@dataclass(frozen=True)
class Recorded:
    """The times of one trial."""

    key: str
    times: Times
    others_share: float  # of all cores


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = NAME,
    repeats: Annotated[int, typer.Option(min=2, help="Trials of each shape and state.")] = 5,
) -> None:
    """Write how often each rule takes a slower kernel, and how much slower it is on the mean."""
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    recorded: dict[str, list[Recorded]] = {"quiet": [], "busy": []}
    trials = _trials(model)
    for _ in range(repeats):
        recorded["quiet"] += [_recorded(trial) for trial in trials]
        with _busy():
            recorded["busy"] += [_recorded(trial) for trial in trials]
    shortest = _shortest(recorded["quiet"])
    report = {
        state: {name: _losses(rule, each, shortest) for name, rule in _RULES.items()}
        for state, each in recorded.items()
    }
    write({**facts("tuner"), "num_shapes": len(trials), "losses": report}, out)


def _trials(model: str) -> Sequence[Trial]:
    dense = AutoModelForCausalLM.from_pretrained(model_store(model).path(model)).eval()
    tuner = Autotuner()
    for function in functions_of_steps(dense, tuner):
        function.load()
    flat = flat_model(dense, tuner)
    assert flat is not None
    return [*flat.trials(_ROWS, _PROMPT, _TOKENS, _ROWS * _TOKENS)]


@torch.inference_mode()
def _recorded(trial: Trial) -> Recorded:
    began_s, others_s = time.perf_counter(), _others_s()
    increments = timed(trial)
    while True:
        try:
            next(increments)
        except StopIteration as end:
            share = (_others_s() - others_s) / (time.perf_counter() - began_s)
            return Recorded(trial.key, end.value, share / (psutil.cpu_count() or 1))


def _others_s() -> float:
    """Seconds that cores have spent on anything but this process."""
    spent = psutil.cpu_times()
    busy_s: float = sum(spent) - spent.idle - spent.iowait
    return busy_s - time.process_time()


@contextmanager
def _busy() -> Iterator[None]:
    """A process on each core that does nothing but run."""
    command = [sys.executable, "-c", _BUSY]
    processes = [subprocess.Popen(command) for _ in range(psutil.cpu_count() or 1)]  # noqa: S603 - ours
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.wait()


def _shortest(recorded: Sequence[Recorded]) -> Mapping[str, Mapping[str, float]]:
    """By key and kernel, over all trials."""
    shortest: dict[str, dict[str, float]] = {}
    for each in recorded:
        of_key = shortest.setdefault(each.key, {})
        for name, times in each.times.items():
            of_key[name] = min([*times, of_key.get(name, times[0])])
    return shortest


def _before(each: Recorded) -> str:
    is_quiet = each.others_share <= _MAX_OTHERS
    usual = {name: (median if is_quiet else min)(times) for name, times in each.times.items()}
    first, best = next(iter(usual)), min(usual, key=usual.__getitem__)
    worth = _WORTH if is_quiet else _WORTH_DISTURBED
    return best if usual[best] < worth * usual[first] else first


def _now(each: Recorded) -> str:
    return chosen(each.times).kernel


_RULES = {"before": _before, "now": _now}


def _losses(
    rule: Callable[[Recorded], str], recorded: Sequence[Recorded], true: Mapping[str, Any]
) -> Mapping[str, Any]:
    losses = [true[each.key][rule(each)] / min(true[each.key].values()) for each in recorded]
    return {
        "num_choices": len(losses),
        "share_slower": round(fmean(loss > _SLOWER for loss in losses), 3),
        "mean": round(fmean(losses), 4),
        "worst": round(max(losses), 3),
    }


if __name__ == "__main__":
    typer.run(main)
