"""Searches as they might have ended, made without one, and the stability report of several."""

from collections.abc import Sequence

from pruning.removal import decide
from pruning.stability.agreement import SearchRun, Stability, stability

NUM_BLOCKS = 8
NUM_FREE = 6
CLEAR = 0.5  # nats to the runner-up; windows differ by 0.02


def run_of(
    order: Sequence[int],
    *,
    text: str = "a.txt",
    seed: int = 0,
    gap: float = CLEAR,
    perplexities: Sequence[float] = (),
    windows: Sequence[str] | None = None,
) -> SearchRun:
    removals = []
    for step, block in enumerate(order, start=1):
        left = [b for b in range(1, NUM_BLOCKS - 1) if b not in order[:step]]
        losses = {b: [3 + gap, 3 + gap + 0.02, 3 + gap - 0.02] for b in left}
        removals.append(decide(step, 2.5, {block: [3.0, 3.0, 3.0], **losses}))
    curve = tuple(perplexities or [10.0 + step for step in range(len(order) + 1)])
    given_windows = tuple(windows or [f"{text}{seed}{at}" for at in range(4)])
    return SearchRun(text, seed, tuple(removals), {"a.txt": curve}, given_windows)


def report_of(*runs: SearchRun) -> Stability:
    return stability("tiny", NUM_BLOCKS, NUM_FREE, runs)
