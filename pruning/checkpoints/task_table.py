"""The tasks that a pruned and its dense model have answered, as a table and in sentences."""

from collections.abc import Iterator

from pruning.evaluation.task_shares import TaskResult, TaskShares
from pruning.evaluation.verdict_table import with_reach

_HEADINGS = ("task", "questions", "dense", "pruned", "share kept", "flips")


def task_table(shares: TaskShares) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a row for each task, the worst one first."""
    results = sorted(shares.by_task.items(), key=lambda each: _order(each[1]))
    return _HEADINGS, [(task, *_cells(result)) for task, result in results]


def _order(result: TaskResult) -> float:
    return float("inf") if result.share is None else result.share.value


def _cells(result: TaskResult) -> tuple[str, ...]:
    return (
        str(result.num_questions),
        f"{result.dense_accuracy:.3f} ± {result.dense_standard_error:.3f}",
        f"{result.accuracy:.3f} ± {result.standard_error:.3f}",
        with_reach(result.share),
        f"{100 * result.flips:.0f} %",
    )


def task_sentences(shares: TaskShares | None) -> Iterator[str]:
    """What is left of the dense accuracy, and where least. Nothing without tasks."""
    if shares is None:
        return
    if shares.worst_task is None:
        yield "tasks: on none of them the dense model is surely better than guesses."
        return
    of_all = "" if shares.share is None else f"a share of {shares.share} on all tasks, and "
    yield (
        f"tasks: of the dense model's accuracy above chance it keeps {of_all}"
        f"{shares.worst} on the worst one, {shares.worst_task}."
    )


def task_legend() -> Iterator[str]:
    yield "dense, pruned: the share of right answers to the same questions, ± one standard error."
    yield (
        "share kept: of the dense model's accuracy above chance, ± half of an interval of 95 %; "
        "-: the dense model is not surely better than guesses."
    )
    yield "flips: answers that became right or wrong (arXiv 2407.09141)."
