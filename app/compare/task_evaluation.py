"""Tasks of a model and of its dense model, asked by ``sleb eval`` in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.child_command import CommandFailed, json_of
from pruning.config import Settings
from pruning.evaluation.task_sources import TaskSources


class TasksFailed(RuntimeError):
    """The process ended without answers. The message is the last line that it wrote."""


@dataclass(frozen=True)
class TaskQuestions:
    """Which tasks, and how many questions of each; None: all."""

    tasks: Sequence[str]
    num_questions: int | None

    def check(self, settings: Settings) -> None:
        """Raises ``InvalidSpec`` for what is neither generated nor in a file of the operator, or
        ``ZeroShotUnavailable``.
        """
        TaskSources(settings.task_data_dir, can_download=False).check(self.tasks)


async def answered(model: str, asked: TaskQuestions, settings: Settings) -> Mapping[str, Any]:
    """The ``tasks`` and ``task_shares`` of the model, as ``sleb eval --json`` prints them.

    It keeps them for the advice. The process ends if this is cancelled. Raises ``TasksFailed``.
    """
    arguments = ["--json", f"--tasks={','.join(asked.tasks)}"]
    if settings.task_data_dir is not None:
        arguments.append(f"--task-data={settings.task_data_dir}")
    if asked.num_questions is not None:
        arguments.append(f"--limit={asked.num_questions}")
    try:
        report = await json_of("eval", [*arguments, "--", model], settings)
    except CommandFailed as error:
        raise TasksFailed(str(error) or f"the evaluation of {model} ended at once") from error
    *_, own = report["evaluations"]  # the dense model is first
    return {name: own[name] for name in ("tasks", "task_shares")}
