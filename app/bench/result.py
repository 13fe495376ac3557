"""What the runs of ``sleb bench`` come to: speed-ups with intervals, beside what is possible."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from app.bench.plan import DENSE, HALF, Plan, Scenario, Subject
from app.bench.runs import Sample
from app.compare.speedup import Speedup, speedup
from pruning.models.timing import BlockTimes

Samples = Mapping[str, Sequence[Sample]]  # by side, a sample for each repeat

NAMES = {"tpot": "per token", "ttft": "first token", "e2e": "answer"}


@dataclass(frozen=True)
class Row:
    """One variant against the dense model, in one time of one scenario."""

    scenario: Scenario
    variant: str
    time: str  # a key of ``NAMES``
    dense_s: float
    variant_s: float
    speedup: Speedup
    ideal: float | None  # of the first time of each scenario
    ideal_by_blocks: float  # as if there were nothing but blocks

    @property
    def what(self) -> str:
        return NAMES[self.time]


@dataclass(frozen=True)
class Bench:
    subject: Subject
    plan: Plan
    samples: Mapping[Scenario, Samples]
    parts: Mapping[Scenario, BlockTimes]  # embeddings and head for the rows of the scenario
    weight_bytes: Mapping[str, int]  # of each side, if it were alone
    facts: Mapping[str, object]  # dtype, machine, command

    def rows(self) -> list[Row]:
        return [
            row
            for scenario, samples in self.samples.items()
            for variant in self.subject.removed
            for row in self._rows(scenario, samples, variant)
        ]

    def _rows(self, scenario: Scenario, samples: Samples, variant: str) -> list[Row]:
        num_blocks = self.subject.num_blocks
        num_removed = len(self.subject.removed[variant])
        rows = []
        for time in samples[DENSE][0].times_s:
            dense_s, variant_s = _times_s(samples[DENSE], time), _times_s(samples[variant], time)
            is_first = time == next(iter(samples[DENSE][0].times_s))
            rows.append(
                Row(
                    scenario,
                    variant,
                    time,
                    fmean(dense_s),
                    fmean(variant_s),
                    speedup(dense_s, variant_s),
                    self._ideal(scenario, samples, time, num_removed) if is_first else None,
                    num_blocks / (num_blocks - num_removed),
                )
            )
        return rows

    def _ideal(
        self, scenario: Scenario, samples: Samples, time: str, num_removed: int
    ) -> float | None:
        """Of a forward that is nothing but embeddings, blocks and head. What a block takes is the
        difference between the whole model and half of it; None where noise makes it none.
        """
        num_blocks = self.subject.num_blocks
        dense_s = fmean(_times_s(samples[DENSE], time))
        half_s = fmean(_times_s(samples[HALF], time))
        block_s = (dense_s - half_s) / (num_blocks - num_blocks // 2)
        if block_s <= 0:
            return None
        parts = self.parts[scenario]
        times = BlockTimes(parts.embedding_s, block_s, parts.head_s)
        return times.speedup(num_blocks, num_removed)


def _times_s(samples: Sequence[Sample], time: str) -> list[float]:
    return [sample.times_s[time] for sample in samples]


def to_wire(bench: Bench) -> dict[str, Any]:
    """Everything that was measured, run by run, and what follows from it; JSON can say it."""
    return {
        "model": bench.subject.name,
        "num_blocks": bench.subject.num_blocks,
        "variants": {name: list(blocks) for name, blocks in bench.subject.removed.items()},
        "weight_bytes": dict(bench.weight_bytes),
        "plan": asdict(bench.plan),
        "results": [_row_to_wire(row) for row in bench.rows()],
        "parts": {scenario: asdict(parts) for scenario, parts in bench.parts.items()},
        "samples": {
            scenario: {
                side: [{**asdict(its), "tokens_per_s": its.tokens_per_s} for its in runs]
                for side, runs in samples.items()
            }
            for scenario, samples in bench.samples.items()
        },
        **bench.facts,
    }


def _row_to_wire(row: Row) -> dict[str, Any]:
    return {**asdict(row), "what": row.what}
