"""The results of ``sleb bench``: speed-ups with intervals, the ideal ones, and their report."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from statistics import fmean
from typing import Any

import psutil
import torch

from app.bench.plan import AGAIN, DENSE, HALF, BenchPlan, BenchSubject, Scenario
from app.bench.runs import Sample
from app.compare.speedup import (
    EQUAL_WITHIN,
    Kernels,
    Speedup,
    all_kernels,
    beyond_noise,
    different_kernels,
    kernel_names,
    prompt_reading,
    speedup,
)
from app.engine.autotuning import cpu_name
from pruning.checkpoints.markdown import markdown_table
from pruning.models.block_times import BlockTimes
from pruning.plural import counted

Samples = Mapping[str, Sequence[Sample]]  # by variant, one for each repeat

NAMES = {"tpot": "per token", "ttft": "first token", "e2e": "answer"}

HEADINGS = ("side", "what", "dense", "variant", "speed-up", "interval", "ideal", "verdict")

_METHOD = """\
Dense model and variants took turns, each first equally often, on the same prompts with answers of
fixed lengths, after a short run of each that was not measured. Prompts were read {reading}. A
speed-up is a ratio of mean times over {repeats}, with its 95 % interval. It has a verdict only if
the interval is no wider than the effect, or lies within {equal:.0%} of 1. `{again}` is the control:
the dense model a second time, whose true speed-up is 1. A speed-up whose interval overlaps that of
the control has no verdict, nor has one of other kernels than those of the dense model. The ideal is
the speed-up of a forward pass that consists of embeddings, blocks and head only.
"""


@dataclass(frozen=True)
class Row:
    """One variant compared with the dense model, in one time of one scenario."""

    scenario: Scenario
    variant: str
    time: str  # a key of ``NAMES``
    dense_s: float
    variant_s: float
    speedup: Speedup
    ideal: float | None  # only for the first time of each scenario, and for plain weights
    ideal_by_blocks: float  # the ratio of the numbers of blocks

    @property
    def what(self) -> str:
        return NAMES[self.time]


@dataclass(frozen=True)
class Bench:
    subject: BenchSubject
    plan: BenchPlan
    samples: Mapping[Scenario, Samples]
    parts: Mapping[Scenario, BlockTimes]  # embeddings and head for the rows of the scenario
    weight_bytes: Mapping[str, int]  # of each variant, if loaded alone
    facts: Mapping[str, object]  # dtype, machine, command

    @property
    def prompt_reading(self) -> str:
        runs = chain.from_iterable(chain(*(each.values() for each in self.samples.values())))
        return prompt_reading(sum(run.num_cached_tokens for run in runs))

    def rows(self) -> list[Row]:
        return [
            row
            for scenario, samples in self.samples.items()
            for variant in (AGAIN, *self.subject.removed)
            for row in self._rows(scenario, samples, variant)
        ]

    def _rows(self, scenario: Scenario, samples: Samples, variant: str) -> list[Row]:
        num_blocks = self.subject.num_blocks
        num_removed = len(self.subject.removed.get(variant, ()))
        rows = []
        for time in samples[DENSE][0].times_s:
            dense_s, variant_s = _times_s(samples[DENSE], time), _times_s(samples[variant], time)
            is_first = time == next(iter(samples[DENSE][0].times_s))
            has_ideal = is_first and variant not in self.subject.int8
            rows.append(
                Row(
                    scenario,
                    variant,
                    time,
                    fmean(dense_s),
                    fmean(variant_s),
                    _speedup(samples, variant, time),
                    self._ideal(scenario, samples, time, num_removed) if has_ideal else None,
                    num_blocks / (num_blocks - num_removed),
                )
            )
        return rows

    def _ideal(
        self, scenario: Scenario, samples: Samples, time: str, num_removed: int
    ) -> float | None:
        """The speed-up of a step that consists of embeddings, blocks and head only.

        The time of a block follows from the times of the whole and of half the model. None if
        noise makes it negative, or without half a model.
        """
        if HALF not in samples:
            return None
        num_blocks = self.subject.num_blocks
        dense_s = fmean(_times_s(samples[DENSE], time))
        half_s = fmean(_times_s(samples[HALF], time))
        block_s = (dense_s - half_s) / (num_blocks - num_blocks // 2)
        if block_s <= 0:
            return None
        parts = self.parts[scenario]
        times = BlockTimes(parts.embedding_s, block_s, parts.head_s)
        return times.speedup(num_blocks, num_removed)


def _speedup(samples: Samples, variant: str, time: str) -> Speedup:
    """Over the dense model, with a verdict where the control supports one."""
    dense_s = _times_s(samples[DENSE], time)
    objection = different_kernels(_kernels(samples[DENSE]), _kernels(samples[variant]))
    measured = speedup(dense_s, _times_s(samples[variant], time), objection)
    if variant == AGAIN:
        return measured
    return beyond_noise(measured, speedup(dense_s, _times_s(samples[AGAIN], time)))


def _kernels(samples: Sequence[Sample]) -> Kernels:
    return all_kernels(chain.from_iterable(sample.kernels for sample in samples))


def _times_s(samples: Sequence[Sample], time: str) -> list[float]:
    return [sample.times_s[time] for sample in samples]


def facts_of(dtype: str) -> dict[str, object]:
    """What a report says of the machine and the command that measured it, as JSON values."""
    command = shlex.join(["sleb", *sys.argv[1:]])
    return {"dtype": dtype, "command": command, "machine": machine()}


def machine() -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sleb-serve")},
    }


def to_wire(bench: Bench) -> dict[str, Any]:
    """All samples and results as JSON values."""
    return {
        "model": bench.subject.name,
        "num_blocks": bench.subject.num_blocks,
        "variants": {name: list(blocks) for name, blocks in bench.subject.removed.items()},
        "repairs": {name: repaired.method for name, repaired in bench.subject.repairs.items()},
        "control": AGAIN,
        "prompt_reading": bench.prompt_reading,
        "kernels": {
            scenario: {name: kernel_names(_kernels(runs)) for name, runs in samples.items()}
            for scenario, samples in bench.samples.items()
        },
        "weight_bytes": dict(bench.weight_bytes),
        "plan": asdict(bench.plan),
        "results": [{**asdict(row), "what": row.what} for row in bench.rows()],
        "parts": {scenario: asdict(parts) for scenario, parts in bench.parts.items()},
        "samples": {
            scenario: {
                name: [{**asdict(one), "tokens_per_s": one.tokens_per_s} for one in of_variant]
                for name, of_variant in samples.items()
            }
            for scenario, samples in bench.samples.items()
        },
        **bench.facts,
    }


def markdown(bench: Bench) -> str:
    """The whole report."""
    subject, plan = bench.subject, bench.plan
    repeats = counted(plan.repeats, "repeat")
    method = _METHOD.format(
        repeats=repeats, equal=EQUAL_WITHIN, again=AGAIN, reading=bench.prompt_reading
    )
    lines = [f"# {subject.name}: speed-up of pruned variants", "", method]
    lines += [f"- `{name}`: {_variant(subject, name)}" for name in subject.removed]
    for scenario, samples in bench.samples.items():
        rows = [row for row in bench.rows() if row.scenario is scenario]
        lines += ["", f"## {scenario.capitalize()}: {plan.description(scenario)}", ""]
        lines.append(markdown_table(HEADINGS, map(cells, rows), 2))
        lines += ["", *(f"- {reason}" for reason in reasons(rows)), ""]
        headings = ("side", "tokens per second", "peak GPU memory", "energy per token")
        shown = {DENSE, AGAIN, *subject.removed}
        sides = {side: runs for side, runs in samples.items() if side in shown}
        lines.append(markdown_table(headings, (_usage(*side) for side in sides.items()), 1))
    machine = bench.facts.get("machine")
    facts = (bench.facts.get("engine"), machine, bench.facts.get("command"))
    lines += ["", "## Engine and machine", "", *(f"`{fact}`\n" for fact in facts)]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The cells under ``HEADINGS``."""
    measured = row.speedup
    has_interval = measured.low is not None and measured.high is not None
    return [
        row.variant,
        row.what,
        _ms(row.dense_s),
        _ms(row.variant_s),
        f"{measured.ratio:.3f}×",
        f"{measured.low:.2f} to {measured.high:.2f}" if has_interval else "",
        f"{row.ideal:.3f}×" if row.ideal is not None else "",
        measured.verdict.value,
    ]


def summary(row: Row) -> str:
    """The speed-up of a row in words, with its interval and its verdict."""
    variant, what, _, _, ratio, ends, _, verdict = cells(row)
    return f"{row.scenario}, {variant}, {what}: {ratio}{ends and f' ({ends})'}, {verdict}"


def reasons(rows: Sequence[Row]) -> list[str]:
    """The reason of each verdict."""
    return [
        f"{row.variant}, {row.what}: {row.speedup.verdict}: {row.speedup.reason}" for row in rows
    ]


def _variant(subject: BenchSubject, name: str) -> str:
    blocks, repaired = subject.removed[name], subject.repairs.get(name)
    int8 = " with int8 weights" if name in subject.int8 else ""
    if not blocks:
        return f"the dense model{int8}"
    how = f"repaired by {repaired.method}" if repaired else "not repaired"
    return f"without blocks {', '.join(map(str, blocks))}, {how}{int8 and f',{int8}'}"


def _usage(side: str, runs: Sequence[Sample]) -> list[str]:
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    energies = [run.energy_j / run.num_tokens for run in runs if run.energy_j is not None]
    return [
        side,
        f"{sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs):,.1f}",
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not a GPU",
        f"{fmean(energies):.3f} J" if energies else "unknown",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
