"""Whether a candidate is shown to keep the limits, and why it is not."""

from dataclasses import replace

import pytest

from pruning.evaluation.frontier import judge
from pruning.evaluation.limits import Judgement, Limits, times
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.points import Load, Point
from pruning.evaluation.quality import Interval
from pruning.evaluation.results import ItemResult, Kind, compare
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.verdict import Verdict
from pruning.evaluation.verdict_table import explained, verdict_table, with_reach
from pruning.spec import InvalidSpec

LOAD = Load("stream", "per token")


def candidate(num_removed: int, speed: float, prose: float, *, half: float = 0.01) -> Point:
    return Point(
        f"m@-{num_removed}",
        num_removed,
        num_blocks=30 - num_removed,
        speeds={LOAD.name: Interval(speed, speed - half, speed + half)},
        ratios={
            "prose": Interval(prose, prose - half, prose + half),
            "code": Interval(1.01, 1.0, 1.02),
        },
    )


PIQA = PairedTask("piqa", 0.5, 2000, both=1380, dense_only=20, own_only=0, neither=600)
LAMBADA = PairedTask(
    "lambada_openai", 0.0, 4000, both=1900, dense_only=100, own_only=0, neither=2000
)
MIDDLE = candidate(4, 1.13, 1.03)


def judged(point: Point, limits: Limits = Limits()) -> Judgement:  # noqa: B008 - frozen
    return limits.judge(point, [LOAD.name])


def test_what_is_within_all_limits_is_kept() -> None:
    assert judged(MIDDLE) == Judgement()
    dense = Point("m")
    assert judged(dense, Limits(min_probe=1)) == Judgement(), "it is what the others are judged by"


def test_each_limit_that_is_not_kept_is_named() -> None:
    slow = judged(candidate(2, 1.06, 1.2))
    assert slow == Judgement(
        Verdict.EXCEEDED,
        ("speed", "prose"),
        "speed 1.06 × (1.05 to 1.07) is below 1.1; prose 1.20 × (1.19 to 1.21) is beyond 1.05",
    )


def test_an_interval_that_contains_a_limit_keeps_nothing() -> None:
    wide = judged(candidate(4, 1.13, 1.03, half=0.04))
    assert wide.verdict is Verdict.UNDECIDED
    assert "speed 1.13 × (1.09 to 1.17) is undecided at 1.1" in wide.because
    assert wide.failing == ("speed", "prose")


def test_the_load_where_a_candidate_is_fastest_counts() -> None:
    speeds = {"stream": Interval(1.0, 0.9, 1.05), "32": Interval(1.2, 1.15, 1.3)}
    both = replace(MIDDLE, speeds=speeds)
    assert Limits().judge(both, ["stream", "32"]).verdict is Verdict.KEPT
    assert Limits().judge(both, ["stream"]).verdict is Verdict.EXCEEDED


def test_what_is_not_measured_is_undecided() -> None:
    blind = judged(replace(MIDDLE, ratios={}))
    assert (blind.verdict, blind.because) == (
        Verdict.UNDECIDED,
        "its perplexity is not measured",
    )
    assert judged(replace(MIDDLE, speeds={})).because == "its speed is not measured"
    too_few = replace(MIDDLE, ratios={"prose": Interval(1.0, None, None)})
    assert judged(too_few).verdict is Verdict.UNDECIDED
    probed = judged(MIDDLE, Limits(min_probe=0.5))
    assert (probed.verdict, probed.failing) == (Verdict.UNDECIDED, ("probe",))


def test_a_probe_below_its_limit_is_refused() -> None:
    right = [ItemResult(Kind.JSON, is_chosen=True, is_written=True)] * 4
    half = [ItemResult(Kind.JSON, is_chosen=True, is_written=False)] * 4
    probed = replace(MIDDLE, probe=compare(right, half, "d"))
    assert judged(probed, Limits(min_probe=0.4)).verdict is Verdict.KEPT
    limits = Limits(min_probe=0.6)
    assert judged(probed, limits).because == "probe score 0.50 is below 0.6"
    headings, [row] = verdict_table(judge("m", (probed,), [LOAD], limits))
    assert headings == ("", "model", "stream", "perplexity", "probe", "keeps")
    assert row == ("*", "@-4", "1.13±.01", "1.030±.010", "0.50", "no: probe")


def test_the_end_of_the_interval_of_the_task_share_counts() -> None:
    answered = replace(MIDDLE, tasks=TaskShares.of([PIQA, LAMBADA]))
    assert answered.tasks is not None
    share = answered.tasks.share
    assert share is not None
    assert share.low is not None
    assert share.high is not None
    assert judged(answered, Limits(min_task_share=share.low)) == Judgement()
    wide = judged(answered, Limits(min_task_share=share.value))
    assert (wide.verdict, wide.failing) == (Verdict.UNDECIDED, ("tasks",))
    assert wide.because == f"tasks {times(share)} is undecided at {share.value:g}"
    beyond = judged(answered, Limits(min_task_share=1.0))
    assert (beyond.verdict, beyond.failing[0]) == (Verdict.EXCEEDED, "tasks")
    assert judged(MIDDLE, Limits(min_task_share=0.5)) == Judgement(
        Verdict.UNDECIDED, ("tasks",), "its accuracy on tasks is not known"
    )
    assert judged(MIDDLE) == Judgement(), "there is no limit by default"


def test_a_task_that_is_surely_below_the_limit_exceeds_it() -> None:
    uneven = TaskShares.of([PIQA, replace(LAMBADA, both=1000, dense_only=1000)])
    broken = judged(replace(MIDDLE, tasks=uneven), Limits(min_task_share=0.58))
    assert (broken.verdict, broken.failing) == (Verdict.EXCEEDED, ("lambada_openai",))
    assert broken.because.startswith("lambada_openai 0.50 × (0.4")


def test_the_table_has_tasks_where_they_are_known() -> None:
    answered = replace(MIDDLE, tasks=TaskShares.of([PIQA, LAMBADA]))
    unknown = candidate(5, 1.2, 1.1)
    dense = Point("m", speeds={LOAD.name: Interval(1, 1, 1)})
    verdict = judge("m", (dense, answered, unknown), [LOAD], Limits(min_task_share=0.5))
    headings, rows = verdict_table(verdict)
    assert headings == ("", "model", "stream", "perplexity", "tasks", "worst", "keeps")
    assert [row[4] for row in rows] == ["1.00", "0.95±.02", "-"]
    assert answered.tasks is not None
    assert rows[1][5] == with_reach(answered.tasks.worst)
    assert any(line.startswith("tasks: share of the dense") for line in explained(verdict))
    without = judge("m", (dense, unknown), [LOAD], Limits())
    assert "tasks" not in verdict_table(without)[0]


@pytest.mark.parametrize(
    "given",
    [{"max_ratio": 0.9}, {"min_speedup": 0.5}, {"min_probe": 2.0}, {"min_task_share": 1.1}],
)
def test_limits_that_nothing_can_keep_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Limits(**given)
    assert caught.value.param == next(iter(given))
