"""The tasks of a run by name, and how many questions of each."""

from collections.abc import Sequence

from pruning.spec import InvalidSpec, refused
from pruning.spec.evaluation import Gate

PAPER_TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")
MIN_QUESTIONS = 10  # of a task: fewer decide nothing
MAX_TASKS = 64


def check_tasks(tasks: Sequence[str], num_questions: int | None, gate: Gate | None) -> None:
    """Raises ``InvalidSpec``. Whether such tasks exist depends on the machine."""
    if gate is not None and gate.min_task_share is not None and not tasks:
        raise InvalidSpec(
            "gate.min_task_share", "gate.min_task_share requires tasks: name some in tasks"
        )
    if len({*tasks}) < len(tasks):
        raise InvalidSpec("tasks", f"tasks={', '.join(tasks)}: name each task once")
    if len(tasks) > MAX_TASKS:
        raise refused("tasks", len(tasks), f"at most {MAX_TASKS} names")
    if num_questions is not None and num_questions < MIN_QUESTIONS:
        raise refused("task_questions", num_questions, f"{MIN_QUESTIONS} or more, or null for all")
