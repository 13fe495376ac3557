"""The frontier of quality and speed, and the verdict that a person reads."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pruning.evaluation.frontier import StepRequest, judge
from pruning.evaluation.limits import Limits
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.points import Load, Point, dominates, frontier
from pruning.evaluation.quality import Interval
from pruning.evaluation.task_shares import TaskShares
from pruning.spec.tasks import PAPER_TASKS

STREAM, MANY, PROMPT = (
    Load("stream", "at one stream"),
    Load("32", "at 32 streams"),
    Load("prompt", "on a prompt of 2,048 tokens"),
)
LOADS = (STREAM, MANY, PROMPT)
NAMES = [load.name for load in LOADS]
WITHIN = Limits(1.05, 1.0)  # any gain counts


def about(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half)


def point(name: str, ratio: float, *speeds: float, half: float = 0.01) -> Point:
    depth = name.partition("@-")[2].removesuffix("+healed").removesuffix("+int8")
    return Point(
        name,
        int(depth or 0),
        is_int8=name.endswith("+int8"),
        is_healed=name.endswith("+healed"),
        ratios={"prose": about(ratio, half)},
        speeds={load.name: about(speed) for load, speed in zip(LOADS, speeds, strict=False)},
        checkpoint="m@prn-1",
    )


def answered(one: Point, lost: int, num_available: int = 1000) -> Point:
    """With all the paper's tasks, of 1,000 questions each, and so many fewer right of 700."""
    counts = (700 - lost, lost, 0, 300)
    tasks = [PairedTask(task, 0.5, num_available, *counts) for task in PAPER_TASKS]
    return replace(one, tasks=TaskShares.of(tasks))


DENSE = replace(point("m", 1, 1, 1, 1), ratios={"prose": Interval(1, 1, 1)})
INT8 = point("m+int8", 1.006, 1.77, 1.08, 0.9, half=0.004)
SHALLOW = point("m@-1", 1.03, 1.04, 1.03, 1.04)
DEEP = point("m@-3", 1.2, 1.12, 1.11, 1.13)
BOTH = point("m@-3+int8", 1.21, 2.3, 1.25, 1.0)
ALL = (DENSE, INT8, SHALLOW, DEEP, BOTH)


def test_int8_is_taken_where_no_depth_that_keeps_the_limit_is_faster() -> None:
    verdict = judge("m", ALL, LOADS, WITHIN)
    assert verdict.sentence == (
        "Take m+int8: 1.77 × as fast at one stream for 0.6 % more perplexity; no pruned depth that "
        "costs at most 5 % beats it at one stream or 32 streams. On a prompt of 2,048 tokens take "
        "@-1 (1.04 × for 3.0 % more)."
    )
    assert verdict.taken == {"stream": "m+int8", "32": "m+int8", "prompt": "m@-1"}
    assert verdict.undecided == ()


def test_depths_are_taken_where_they_are_faster_and_keep_the_limit() -> None:
    points = (DENSE, INT8, DEEP, replace(BOTH, speeds={**BOTH.speeds, "stream": about(1.6)}))
    verdict = judge("m", points, LOADS, Limits(1.3, 1.0))
    assert verdict.sentence.startswith("Take m+int8: 1.77 × as fast at one stream for 0.6 % more")
    assert "no pruned depth that costs at most 30 % beats it at one stream." in verdict.sentence
    assert "At 32 streams take @-3+int8 (1.25 × for 21 % more)." in verdict.sentence
    assert verdict.next_step is not None
    assert verdict.next_step.command == "sleb models alias prod m+int8"


def test_do_not_prune_is_an_answer() -> None:
    slow = point("m@-1", 1.03, 1.0, 1.0, 1.0)
    verdict = judge("m", (DENSE, slow), LOADS, WITHIN)
    assert verdict.sentence == (
        "Do not prune this model: no pruned depth that costs at most 5 % perplexity is surely "
        "faster at one stream and 32 streams and on a prompt of 2,048 tokens. The closest, @-1, is "
        "1.00 × as fast for 3.0 % more perplexity."
    )
    assert verdict.next_step is None
    partly = judge("m", (DENSE, point("m@-1", 1.03, 1.0, 1.1, 1.0)), LOADS, WITHIN)
    assert partly.sentence.startswith("Do not prune this model at one stream and on a prompt")
    assert partly.sentence.endswith("At 32 streams take @-1 (1.10 × for 3.0 % more).")


def test_what_is_not_worth_a_change_is_not_taken() -> None:
    assert judge("m", (DENSE, INT8, DEEP), LOADS, Limits(1.3, 1.0)).taken["32"] == "m@-3"
    verdict = judge("m", (DENSE, INT8, DEEP), LOADS, Limits(1.3, 1.2))
    assert verdict.taken == {"stream": "m+int8", "32": "m", "prompt": "m"}
    assert "On a prompt" not in verdict.sentence, "both loads keep the dense model"
    assert verdict.sentence.endswith(
        "At 32 streams and on a prompt of 2,048 tokens keep the dense model."
    )


def test_int8_that_was_not_measured_is_the_next_step() -> None:
    """It is not hidden, and no answer is about it."""
    unknown, slow = Point("m+int8", is_int8=True), replace(DEEP, speeds={"stream": about(1.02)})
    verdict = judge("m", (DENSE, unknown, slow), LOADS[:1], Limits())
    assert verdict.sentence == (
        "Do not prune this model: no pruned depth that costs at most 5 % perplexity is surely at "
        "least 1.1 × as fast at one stream. The closest, @-3, is 1.02 × as fast for 20 % more "
        "perplexity. Int8 weights are not measured yet."
    )
    assert verdict.next_step is not None
    assert verdict.next_step.command == "sleb frontier m"
    assert (verdict.taken_at("stream"), verdict.nearest) == (None, "m@-3")
    alone = judge("m", (replace(DENSE, speeds={}), unknown), LOADS[:1], Limits(1.1))
    assert alone.sentence == (
        "Nothing is known of m: it is not pruned. Int8 weights are not measured yet."
    )
    assert alone.next_step is not None
    assert alone.next_step.command == "sleb frontier m --max-ratio 1.1"


def predicted(name: str, ratio: float, speed: float) -> Point:
    speeds = {"stream": Interval(speed, None, None)}
    return replace(point(name, ratio), speeds=speeds, predicted=("stream",))


def test_a_prediction_is_called_one_and_is_measured_if_that_can_change_the_verdict() -> None:
    taken = judge("m", (DENSE, predicted("m@-2", 1.02, 1.2)), LOADS[:1], Limits())
    assert (
        taken.sentence
        == "Take m@-2: 1.20 × (predicted) as fast at one stream for 2.0 % more perplexity."
    )
    assert taken.undecided == ("@-2 at one stream: its speed is predicted, not measured",)
    assert taken.next_step is not None
    assert taken.next_step.command == "sleb frontier m"
    costly = judge("m", (DENSE, INT8, predicted("m@-6", 1.5, 3)), LOADS[:1], Limits())
    assert costly.undecided == (), "no measurement of its speed makes it worth its perplexity"
    assert costly.next_step is not None
    assert "frontier" not in costly.next_step.command


def test_without_a_probe_score_a_probe_is_the_next_step() -> None:
    limits = Limits(1.3, 1.0, min_probe=0.5)
    fast = replace(DEEP, speeds={name: about(3) for name in NAMES})
    verdict = judge("m", (DENSE, fast), LOADS[:1], limits)
    assert verdict.sentence.startswith("Keep the dense model for now: no pruned depth")
    assert verdict.next_step is not None
    assert verdict.next_step.command.endswith(" --num-remove 3 --gate-max-probe-drop 0.5")


def test_the_loss_of_task_accuracy_is_said() -> None:
    taken = judge("m", (DENSE, answered(INT8, 0), answered(DEEP, 80)), LOADS[:1], WITHIN)
    assert taken.sentence == (
        "Take m+int8: 1.77 × as fast at one stream for 0.6 % more perplexity and 0.0 % of the "
        "task accuracy above chance; no pruned depth that costs at most 5 % beats it at one stream."
    )
    limits = Limits(1.3, 1.0, min_task_share=0.9)
    verdict = judge("m", (DENSE, answered(DEEP, 80)), LOADS[:1], limits)
    assert verdict.sentence == (
        "Do not prune this model: no pruned depth that costs at most 30 % perplexity and 10 % of "
        "the task accuracy above chance is surely faster at one stream. The closest, @-3, is "
        "1.12 × as fast for 20 % more perplexity and 40 % of the task accuracy above chance."
    )
    assert verdict.undecided == ()


def test_tasks_are_the_next_step_where_they_can_change_the_verdict() -> None:
    limits = Limits(1.3, 1.0, min_task_share=0.9)
    verdict = judge("m", (DENSE, DEEP, SHALLOW), LOADS[:1], limits)
    assert verdict.sentence.startswith("Keep the dense model for now: no pruned depth")
    assert verdict.undecided == (
        "@-3 at one stream: its accuracy on tasks is not known closely enough",
    )
    assert verdict.next_step is not None
    limited = "sleb frontier m --max-ratio 1.3 --min-speedup 1 --min-task-share 0.9"
    assert verdict.next_step.command == limited
    slower = judge("m", (DENSE, answered(INT8, 0), DEEP), LOADS[:1], limits)
    assert (slower.taken["stream"], slower.undecided) == ("m+int8", ())
    vague = answered(DEEP, 20)  # at the limit
    answers_all = judge("m", (DENSE, vague), LOADS[:1], limits)
    assert answers_all.undecided == verdict.undecided
    assert answers_all.next_step is not None
    assert answers_all.next_step.command == "sleb jobs heal m@prn-1", "there are no more questions"
    samples = judge("m", (DENSE, answered(DEEP, 20, 2000)), LOADS[:1], limits)
    assert samples.next_step is not None
    assert samples.next_step.command == f"{limited} --task-questions 4000"
    assert samples.next_step.request == StepRequest(
        "POST",
        "/frontiers",
        {
            "model": "m",
            "max_ratio": 1.3,
            "min_speedup": 1.0,
            "min_task_share": 0.9,
            "task_questions": 4000,
        },
    )
    frontier_options = judge("m", (DENSE, predicted("m@-2", 1.02, 1.2)), LOADS[:1], limits)
    assert frontier_options.next_step is not None
    assert frontier_options.next_step.command.endswith(" --min-task-share 0.9")


def test_no_healed_variant_is_taken_on_noise() -> None:
    healed = replace(SHALLOW, name="m@-1+healed", is_healed=True, ratios={"prose": about(1.02)})
    assert judge("m", (DENSE, SHALLOW, healed), LOADS, WITHIN).taken["stream"] == "m@-1"
    better = replace(healed, ratios={"prose": about(1.005)})
    assert judge("m", (DENSE, SHALLOW, better), LOADS, WITHIN).taken["stream"] == "m@-1+healed"


def test_the_next_step_is_one_that_can_change_the_verdict() -> None:
    unpruned = judge("m", (DENSE, INT8), LOADS, WITHIN).next_step
    assert unpruned is not None
    assert unpruned.command == "sleb jobs submit m --num-remove 4"
    assert unpruned.request == StepRequest("POST", "/prune-jobs", {"model": "m", "num_remove": 4})
    healable = judge("m", (DENSE, INT8, DEEP), LOADS, WITHIN).next_step
    assert healable is not None
    assert healable.command == "sleb jobs heal m@prn-1", "it would win on prompts"
    assert healable.request == StepRequest("POST", "/heal-jobs", {"model": "m@prn-1"})
    slower = replace(DEEP, speeds={name: about(1.0) for name in NAMES})
    decided = judge("m", (DENSE, INT8, slower), LOADS, WITHIN).next_step
    assert decided is not None
    assert decided.command == "sleb models alias prod m+int8"


def test_what_may_change_the_verdict_is_said() -> None:
    vague = point("m@-3", 1.04, 2.2, 1, 1, half=0.1)
    verdict = judge("m", (DENSE, INT8, vague), LOADS, WITHIN)
    assert (
        verdict.undecided
        == (
            "@-3 at one stream: its perplexity is not known closely enough",
            "@-3 on a prompt of 2,048 tokens: its perplexity is not known closely enough",
        )[:1]
    )
    assert verdict.next_step is not None
    assert "--evaluation-max-seconds" in verdict.next_step.command
    unmeasured = judge("m", (replace(DENSE, speeds={}), INT8), LOADS[:1], WITHIN)
    assert unmeasured.taken == {"stream": "m+int8"}
    nothing = judge("m", (DENSE, replace(INT8, speeds={})), LOADS[:1], WITHIN)
    assert nothing.undecided == ("at one stream: not measured",)
    assert nothing.next_step is not None
    assert nothing.next_step.command.startswith("sleb frontier m ")


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    value = draw(st.integers(5, 40)) / 10
    if draw(st.integers(0, 9)) == 0:
        return Interval(value, None, None)
    return about(value, draw(st.sampled_from([0.0, 0.1, 0.3])))


@st.composite
def some_points(draw: st.DrawFn) -> list[Point]:
    return [
        Point(
            f"m@-{number}",
            number,
            ratios=draw(st.dictionaries(st.sampled_from(["prose", "code"]), intervals())),
            speeds=draw(st.dictionaries(st.sampled_from(NAMES), intervals())),
        )
        for number in range(draw(st.integers(1, 8)))
    ]


@given(some_points(), st.randoms(use_true_random=False))
def test_exactly_what_is_dominated_is_dropped_in_any_order(
    points: list[Point], random: st.DataObject
) -> None:
    kept = frontier(points, NAMES)
    assert kept
    for one in points:
        assert (one in kept) == (not any(dominates(other, one, NAMES) for other in points))
        assert one in kept or any(dominates(other, one, NAMES) for other in kept)
    shuffled = [*points]
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a Random
    assert {one.name for one in frontier(shuffled, NAMES)} == {one.name for one in kept}
