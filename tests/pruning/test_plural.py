"""One thing is not called by its plural, wherever messages count."""

import pytest

from app.bench.plan import BenchPlan, Scenario
from pruning.checkpoints.trajectory import ties
from pruning.evaluation.quality import text_of
from pruning.jobs.conditions import QueueFull
from pruning.plural import counted


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (counted(0, "block"), "0 blocks"),
        (counted(1, "block"), "1 block"),
        (counted(2, "matrix", "matrices"), "2 matrices"),
        (text_of("prose", 1, 64), "prose, 1 window of 64 tokens"),
        (text_of("prose", 4, 64), "prose, 4 windows of 64 tokens"),
        (next(ties([(0.1, 0.2)], 1)), "ties: 1 of 1 round."),
        (str(QueueFull(1)), "the job queue is full (1 job)"),
        (BenchPlan(requests=1, concurrency=1).description(Scenario.SERVED), "1 client, 1 request "),
    ],
)
def test_one_is_not_a_plural(message: str, says: str) -> None:
    assert message.startswith(says)
