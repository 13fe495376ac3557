"""What candidates lose on tasks: their answers beside those of the dense model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.bench.plan import DENSE
from app.engine.variant import Variant
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.measured_qualities import MeasuredQualities
from pruning.config import Settings
from pruning.evaluation.paired_tasks import Answers
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.task_sources import TaskSources
from pruning.models.forward import InMemoryForward
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore, load_tokenizer
from pruning.spec.tasks import check_tasks


@dataclass(frozen=True)
class TaskPlan:
    """Which tasks, and how many of their first questions. Without names, no task is asked.

    Raises ``InvalidSpec``, or ``ZeroShotUnavailable`` for a task that needs lm-eval.
    """

    names: Sequence[str] = ()
    num_questions: int | None = None  # None: all
    sources: TaskSources = field(default_factory=TaskSources)

    def __post_init__(self) -> None:
        check_tasks(self.names, self.num_questions, None)
        self.sources.check(self.names)

    def is_answered(self, task: str, known: TaskShares | None) -> bool:
        """Whether so many questions of the task are known already."""
        result = known and known.by_task.get(task)
        if not result:
            return False
        wanted = min(self.num_questions or result.num_available, result.num_available)
        return result.num_questions >= wanted


def measure_tasks(
    model: str,
    plan: TaskPlan,
    entries: Sequence[ModelEntry],
    sides: Mapping[str, Variant],
    catalog: Catalog,
    settings: Settings,
    until_s: float,
    say: Callable[[str], object],
) -> bool:
    """Ask every candidate the same tasks, one task after the other, and keep the answers.

    ``sides`` has the dense model, and the candidates by name. Returns whether the time ``until_s``
    was enough: no model begins a task after it. Raises ``TaskUnusable`` and ``OSError``.
    """
    path = ModelStore(settings.models_dir).path(model)
    of_weights, tokenizer = fingerprint(path), load_tokenizer(path)
    qualities = MeasuredQualities(settings.data_dir)

    def answers(side: str, task: str) -> Answers:
        say(f"Asking {model if side == DENSE else side} the questions of {task}")
        forward = InMemoryForward(sides[side].model)
        [answered] = plan.sources.answers(forward, tokenizer, [task], plan.num_questions)
        return answered

    for task in plan.names:
        dense: Answers | None = None
        for entry in entries:
            if plan.is_answered(task, catalog.tasks(entry)):
                continue
            if time.monotonic() >= until_s:
                return False
            dense = dense or answers(DENSE, task)
            paired = answers(entry.name, task).against(dense)
            qualities.record(model, of_weights, tasks={entry.pinned_name: [paired]})
    return True
