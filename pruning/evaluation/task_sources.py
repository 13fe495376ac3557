"""Where the questions of the tasks of a run come from, and what a model answers to them.

They are generated, or in a file of this machine; of the paper's, lm-eval downloads the others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pruning.evaluation.generated import GENERATED_TASKS, answer_generated
from pruning.evaluation.paired_tasks import Answers
from pruning.evaluation.task_data import files_in, task_folder
from pruning.evaluation.task_errors import TaskUnusable, require_lm_eval
from pruning.evaluation.zero_shot import answer_tasks, fetch_tasks
from pruning.extras import has_extra
from pruning.models.forward import Forward
from pruning.spec import InvalidSpec
from pruning.spec.tasks import PAPER_TASKS

_MAX_SHOWN_CHARS = 256  # of names in a message


@dataclass(frozen=True)
class TaskSources:
    """Beside the generated ones: files of questions, and definitions that replace lm-eval's."""

    questions: Path | None = None
    definitions: Path | None = None
    can_download: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        downloaded = PAPER_TASKS if self.can_download else ()
        return tuple(dict.fromkeys((*GENERATED_TASKS, *files_in(self.questions), *downloaded)))

    @property
    def offline(self) -> tuple[str, ...]:
        """Those that can be asked without a download."""
        files = files_in(self.questions) if has_extra("eval") else ()
        return (*GENERATED_TASKS, *files)

    def check(self, tasks: Sequence[str]) -> None:
        """Raises ``InvalidSpec`` for a task that is not known, or ``ZeroShotUnavailable``."""
        if unknown := [task for task in tasks if task not in self.names]:
            raise InvalidSpec(
                "tasks",
                f"unknown tasks: {', '.join(unknown)[:_MAX_SHOWN_CHARS]}. Expected some of "
                f"{', '.join(self.names)}. A file TASK.jsonl in the folder SLEB_TASK_DATA_DIR of "
                "the service, or in --task-data of a command, adds one",
            )
        if {*tasks} - {*GENERATED_TASKS}:
            require_lm_eval()

    def prepare(self, tasks: Sequence[str]) -> None:
        """Read or download all questions. Raises as ``check``, or ``TaskUnusable``."""
        self.check(tasks)
        for names, folder in self._parts(tasks):
            fetch_tasks(names, folder)

    def answers(
        self,
        forward: Forward,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[str],
        num_questions: int | None,
        observe: Callable[[int, int], object] = lambda _done, _total: None,
    ) -> list[Answers]:
        """The answers to the first questions of each task. Raises as ``prepare``."""
        generated = [task for task in tasks if task in GENERATED_TASKS]
        answered = answer_generated(forward, tokenizer, generated, num_questions, observe)
        for names, folder in self._parts(tasks):
            answered += answer_tasks(
                forward.model,
                tokenizer,
                names,
                tasks_dir=folder,
                limit=num_questions,
                observe=observe,
            )
        found = {each.score.task: each.answers for each in answered if each.answers is not None}
        if missing := [task for task in tasks if task not in found]:
            raise TaskUnusable(f"{', '.join(missing)}: its metric is no accuracy")
        return [found[task] for task in tasks]

    def _parts(self, tasks: Sequence[str]) -> Iterator[tuple[Sequence[str], Path | None]]:
        """Tasks with the folder of their definitions, which exists meanwhile."""
        with_file = [task for task in tasks if task in files_in(self.questions)]
        if with_file and self.questions is not None:
            with task_folder(self.questions, with_file) as folder:
                yield with_file, folder
        known = {*with_file, *GENERATED_TASKS}
        if others := [task for task in tasks if task not in known]:
            yield others, self.definitions
