"""Cost of a decode step by context length. It should grow linearly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.engine.variant import Variant
from benchmarks.reports import table
from benchmarks.steady import SteadyBatch, median_steps_s, steady_output_len
from benchmarks.workload import Prompts

BATCH_SIZES = (1, 8)
NUM_STEPS = 9


@dataclass(frozen=True)
class Point:
    """The median step at one context length, compared with the next shorter one."""

    context_len: int
    step_ms: float
    ms_per_token: float
    ratio: float | None  # to the step of the row above
    ms_per_1000: float | None  # growth since the row above per 1000 tokens of context


@dataclass(frozen=True)
class Growth:
    """A least squares line through the steps of one batch size."""

    batch_size: int
    points: tuple[Point, ...]
    base_ms: float
    slope_ms_per_1000: float
    largest_deviation: float  # of a step from the line, relative to the line


def measure_growth(
    variant: Variant, prompts: Prompts, context_lens: Sequence[int], num_steps: int = NUM_STEPS
) -> list[Growth]:
    """Measure every batch size, alternating between its context lengths."""
    return [
        growth(batch_size, _steps_s(variant, prompts, context_lens, batch_size, num_steps))
        for batch_size in BATCH_SIZES
    ]


def _steps_s(
    variant: Variant,
    prompts: Prompts,
    context_lens: Sequence[int],
    batch_size: int,
    num_steps: int,
) -> dict[int, float]:
    output_len = steady_output_len(batch_size, num_steps)
    batches = {
        length: SteadyBatch(variant, prompts.uniform(batch_size, length, output_len))
        for length in context_lens
    }
    return median_steps_s(batches, num_steps)


def growth(batch_size: int, steps_s: dict[int, float]) -> Growth:
    """Fit the steps of one batch size, by context length. Needs at least two lengths."""
    lengths, times_ms = list(steps_s), [1e3 * step_s for step_s in steps_s.values()]
    slope, base = np.polyfit(lengths, times_ms, 1)
    lines = [base + slope * length for length in lengths]
    deviations = [abs(ms - line) / line for ms, line in zip(times_ms, lines, strict=True)]
    points: list[Point] = []
    for length, step_ms in zip(lengths, times_ms, strict=True):
        above = points[-1] if points else None
        grown = None if above is None else step_ms - above.step_ms
        points.append(
            Point(
                context_len=length,
                step_ms=round(step_ms, 3),
                ms_per_token=round(step_ms / batch_size, 3),
                ratio=None if above is None else round(step_ms / above.step_ms, 3),
                ms_per_1000=_per_1000(grown, length, above),
            )
        )
    return Growth(
        batch_size,
        tuple(points),
        base_ms=round(float(base), 3),
        slope_ms_per_1000=round(1e3 * float(slope), 3),
        largest_deviation=round(float(max(deviations)), 4),
    )


def _per_1000(grown_ms: float | None, length: int, above: Point | None) -> float | None:
    if grown_ms is None or above is None:
        return None
    return round(1e3 * grown_ms / (length - above.context_len), 3)


_HEADINGS = (
    "batch", "context", "ms per step", "ms per token", "times the row above", "ms per 1000 more",
)  # fmt: skip


def markdown(growths: Sequence[Growth], title: str) -> str:
    rows = [cells(one, point) for one in growths for point in one.points]
    parts = [f"# {title}", "", _ABOUT, "", table(_HEADINGS, rows, 0), *map(sentence, growths), ""]
    return "\n".join(parts)


_ABOUT = (
    "Median time of one decode step of the engine. The context lengths of a batch size alternate.\n"
    "The JSON file of the same name has the machine and the command."
)


def cells(one: Growth, point: Point) -> list[str]:
    optional = [point.ratio, point.ms_per_1000]
    return [
        str(one.batch_size),
        str(point.context_len),
        f"{point.step_ms:.2f}",
        f"{point.ms_per_token:.2f}",
        *("" if value is None else f"{value:.2f}" for value in optional),
    ]


def sentence(one: Growth) -> str:
    return (
        f"Batch {one.batch_size}: {one.base_ms:.2f} ms + {one.slope_ms_per_1000:.2f} ms per 1000 "
        f"tokens of context; the largest deviation from this line is {one.largest_deviation:.0%}."
    )
