"""The results of ``sleb bench``: speed-ups with intervals, and the ideal ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import fmean
from typing import Any

from app.bench.plan import AGAIN, DENSE, HALF, BenchPlan, BenchSubject, Scenario
from app.bench.runs import Sample
from app.compare.speedup import (
    Kernels,
    Speedup,
    all_kernels,
    beyond_noise,
    different_kernels,
    kernel_names,
    prompt_reading,
    speedup,
)
from pruning.models.block_times import BlockTimes

Samples = Mapping[str, Sequence[Sample]]  # by variant, one for each repeat

NAMES = {"tpot": "per token", "ttft": "first token", "e2e": "answer"}


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
        "results": [_row_to_wire(row) for row in bench.rows()],
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


def _row_to_wire(row: Row) -> dict[str, Any]:
    return {**asdict(row), "what": row.what}
