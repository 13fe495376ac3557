"""A dense model and pruned ones, compared by what they answer to the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pruning.evaluation.paired_tasks import Answers, PairedTask
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.task_sources import TaskSources
from pruning.search.dense_model import DenseModel

_MOST_QUESTIONS = 8  # times those that were asked for, where a limit stays undecided
Compared = tuple[PairedTask, ...]
IsEnough = Callable[[Compared], bool]
AskTasks = Callable[[int, IsEnough], Compared]


@dataclass(frozen=True)
class TaskComparison:
    """Asks the dense model once, and each of the ``models``, by their number of removals."""

    tasks: Sequence[str]
    num_questions: int | None  # of each task at first; None: all
    dense: DenseModel
    models: Mapping[int, PrunedModel]
    _of_dense: dict[int | None, Sequence[Answers]] = field(default_factory=dict)

    def __call__(self, num_removed: int, is_enough: IsEnough = lambda _: True) -> Compared:
        """Asks more questions until it is enough, of tasks that have more."""
        number = self.num_questions
        tasks = self._asked(num_removed, number)
        most = 0 if number is None else number * _MOST_QUESTIONS
        while number is not None and number < most and not is_enough(tasks):
            if all(task.num_questions == task.num_available for task in tasks):
                break
            number *= 2
            tasks = self._asked(num_removed, number)
        return tasks

    def _asked(self, num_removed: int, num_questions: int | None) -> Compared:
        if num_questions not in self._of_dense:
            whole = PrunedModel(self.dense.every_block)
            self._of_dense[num_questions] = self._answers(whole, num_questions)
        pairs = zip(
            self._answers(self.models[num_removed], num_questions),
            self._of_dense[num_questions],
            strict=True,
        )
        return tuple(own.against(whole) for own, whole in pairs)

    def _answers(self, model: PrunedModel, num_questions: int | None) -> Sequence[Answers]:
        resources = self.dense.resources
        sources = TaskSources(resources.task_data_dir, resources.tasks_dir)
        forward = self.dense.forward(model.keep, own=model.own)
        return sources.answers(forward, self.dense.tokenizer, self.tasks, num_questions)
