"""What a model keeps of its dense model's accuracy above chance, on the same questions."""

import math
import random
from dataclasses import replace

import pytest

from pruning.evaluation.paired_tasks import Answers, PairedTask
from pruning.evaluation.task_shares import TaskShares, share_of
from pruning.spec.tasks import PAPER_TASKS

PIQA = PairedTask("piqa", 0.5, 1000, both=600, dense_only=100, own_only=50, neither=250)


def test_answers_are_counted_by_question() -> None:
    dense = Answers("piqa", (True, True, False, False, True), 0.5, 9)
    own = replace(dense, right=(True, False, True, False, True))
    paired = own.against(dense)
    assert paired == PairedTask("piqa", 0.5, 9, both=2, dense_only=1, own_only=1, neither=1)
    assert (paired.accuracy, paired.dense_accuracy, paired.flips) == (0.6, 0.6, 0.4)


def test_guesses_keep_nothing_and_equal_answers_keep_all() -> None:
    guesses = share_of([PairedTask("piqa", 0.5, 1000, 350, 350, 150, 150)])
    assert guesses is not None
    assert guesses.value == 0
    equal = share_of([replace(PIQA, dense_only=0, own_only=0)])
    assert equal is not None
    assert equal.value == 1
    assert equal.low is not None
    assert 0.9 < equal.low < 1, "no flip in 850 questions does not exclude one"


def test_the_share_is_that_of_the_mean_accuracy_and_the_worst_task_is_named() -> None:
    lambada = PairedTask(
        "lambada_openai", 0.0, 400, both=100, dense_only=100, own_only=0, neither=200
    )
    shares = TaskShares.of([PIQA, lambada])
    assert shares is not None
    assert shares.share is not None
    assert shares.share.value == pytest.approx((0.15 + 0.25) / (0.2 + 0.5))
    assert shares.worst_task == "lambada_openai"
    assert shares.worst == shares.by_task["lambada_openai"].share
    assert shares.by_task["piqa"].accuracy == 0.65
    assert TaskShares.of([]) is None


def test_a_dense_model_that_may_guess_says_nothing() -> None:
    guesses = PairedTask("piqa", 0.5, 100, both=30, dense_only=25, own_only=20, neither=25)
    shares = TaskShares.of([guesses])
    assert shares is not None
    assert (shares.share, shares.worst_task, shares.worst) == (None, None, None)
    assert share_of([PairedTask("piqa", 0.0, 9, 3, 0, 0, 0)]) is None, "of three questions"


def test_more_questions_are_known_of() -> None:
    whole = [replace(PIQA, task=task) for task in PAPER_TASKS]
    for tasks, can_be_closer in (
        (whole, False),
        ([replace(whole[0], num_available=2000), *whole[1:]], True),
    ):
        shares = TaskShares.of(tasks)
        assert shares is not None
        assert shares.can_be_closer is can_be_closer


@pytest.mark.parametrize("wrong", [{"both": -1}, {"chance": 1.0}, {"chance": math.nan}])
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="piqa"):
        replace(PIQA, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_questions", [100, 400])
def test_the_interval_contains_the_share(num_questions: int) -> None:
    """Of two tasks with 70 and 60 % right, in at least 95 % of the cases with an interval."""
    chosen, trials, missed = random.Random(0), 400, 0
    cells = ((0.6, 0.1, 0.05, 0.25, 0.5), (0.45, 0.15, 0.05, 0.35, 0.25))
    truth = ((0.65 - 0.5) + (0.5 - 0.25)) / ((0.7 - 0.5) + (0.6 - 0.25))
    for _ in range(trials):
        tasks = []
        for *weights, chance in cells:
            drawn = chosen.choices(range(4), weights, k=num_questions)
            both, dense_only, own_only, neither = (drawn.count(kind) for kind in range(4))
            counts = (both, dense_only, own_only, neither)
            tasks.append(PairedTask("a task", chance, num_questions, *counts))
        share = share_of(tasks)
        if share is not None:
            assert share.low is not None
            assert share.high is not None
            missed += not share.low <= truth <= share.high
    assert missed <= 0.05 * trials
