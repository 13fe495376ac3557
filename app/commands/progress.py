"""Progress bars of pruning runs. Light, so that commands which follow a job start at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress_bar import ProgressBar
from rich.text import Text

from pruning.checkpoints.store import Manifest
from pruning.healing.places import CONTROL
from pruning.healing.record import Step
from pruning.removal import Removal, is_tie
from pruning.search.observed import Observer
from pruning.search.state import ScoredCandidate, SearchPlan
from pruning.spec.heal import Depths, Heal

_SEARCH = "search"  # the phase that may end early
_HEAL, _EVALUATE = "heal", "evaluate"
_READS_OF_TRAINING = 4  # passes over a token: of the teacher, of the model, and backward twice
_MIN_FOR_PACE = 3  # counts: a single one says little of the others


class MovingBar(BarColumn):
    """Moves until the first count as well: an empty bar looks as if nothing happened."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        is_waiting = not task.completed and not task.finished
        bar.pulse = bar.pulse or is_waiting
        return bar


class _Count(ProgressColumn):
    """Evaluations done, their total, and the percentage, which is rounded down."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        done, total = int(task.completed), int(task.total)
        thousandths = 1000 * done // total if total else 1000
        bound = " at most" if task.fields.get("at_most") and done < total else ""
        return Text(f"{done} of{bound} {total}  {thousandths / 10:.1f}%", style="cyan")


class _Eta(ProgressColumn):
    """Estimated time left, at the pace since the first count. It decreases between two counts."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[TaskID, tuple[float, float]] = {}  # count, elapsed seconds
        self._last: dict[TaskID, tuple[float, float]] = {}

    def render(self, task: Task) -> Text:
        if task.total is None or task.finished or task.elapsed is None:
            return Text()
        now = task.completed, task.elapsed
        first = self._first.setdefault(task.id, now)
        if self._last.setdefault(task.id, now)[0] != task.completed:
            self._last[task.id] = now
        done, at_s = self._last[task.id]
        if done - first[0] < _MIN_FOR_PACE:
            return Text("ETA -:--:--", style="blue")
        left_s = (at_s - first[1]) / (done - first[0]) * (task.total - done)
        seconds = round(max(0, at_s + left_s - task.elapsed))
        text = f"ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return Text(text, style="blue")


def search_progress(console: Console) -> Progress:
    """Progress bars of candidate evaluations. A task without a total has no count and no ETA.

    A task with the field ``at_most`` may end before its total.
    """
    return Progress(
        TextColumn("{task.description}"),
        MovingBar(),
        _Count(),
        TimeElapsedColumn(),
        _Eta(),
        console=console,
    )


@dataclass(frozen=True)
class HealWork:
    """What a healing does, in tokens of its training."""

    num_tokens: int  # of one training
    num_trainings: int  # two with a control
    num_evaluated: int = 0  # those that train for as long as the evaluation takes

    @classmethod
    def of(cls, heal: Heal, source: Manifest) -> Self:
        """A token of an evaluation is read once by each model. In training it is read by one of
        them and its teacher, and costs that model a backward pass of two more."""
        num_depths = len(source.removed_blocks) if heal.depths is Depths.ALL else 1
        tokens = sum(one.num_windows * one.seqlen for one in source.quality.domains)
        num_read = tokens * (1 + num_depths + heal.control)
        return cls(heal.num_tokens, 1 + heal.control, num_read // _READS_OF_TRAINING)

    @property
    def total(self) -> int:
        return self.num_tokens * self.num_trainings + self.num_evaluated

    def trained(self, which: str, ratio: float) -> int:
        """What is done when this share of a training is."""
        earlier = 1 if which == CONTROL else 0
        return round((earlier + ratio) * self.num_tokens)

    def evaluated(self, done: int, total: int) -> int:
        return self.total - self.num_evaluated + self.num_evaluated * done // total


class SearchBar(Observer):
    """Observes a run: a bar for each phase, a line for each removal. Keeps the removals.

    With ``heal``, one bar is for the trainings and the evaluation of a healing.
    """

    def __init__(
        self, progress: Progress, *, at_most: bool = False, heal: HealWork | None = None
    ) -> None:
        self.removals: list[Removal] = []
        self._progress = progress
        self._at_most = at_most  # the search may end early
        self._heal = heal
        self._phase = ""
        self._task: TaskID | None = None

    def phase(self, phase: str) -> None:
        is_healing = self._heal is not None and self._heal.num_evaluated > 0
        if is_healing and (self._phase, phase) == (_HEAL, _EVALUATE):
            return  # the bar of the healing goes on
        self.end()
        self._phase = phase
        at_most = self._at_most and phase == _SEARCH
        self._task = self._progress.add_task(phase, total=None, at_most=at_most)

    def searching(self, _plan: SearchPlan, done: int, total: int) -> None:
        self.evaluated(done, total)

    def evaluated(self, done: int, total: int, _scored: Sequence[ScoredCandidate] = ()) -> None:
        self._count(done, total)

    def healing(self, which: str, step: Step) -> None:
        held_out = None if step.check is None else step.check.loss
        self.healed(which, step.num_tokens, step.ratio, step.loss, held_out)

    def healed(
        self, which: str, num_tokens: int, ratio: float, loss: float, held_out: float | None
    ) -> None:
        """A step of the healing. It is a line if the loss on ``held_out`` text was measured."""
        if self._heal is not None:
            self._count(self._heal.trained(which, ratio), self._heal.total)
        else:
            self._count(num_tokens, max(num_tokens, round(num_tokens / ratio)))
        if held_out is not None:
            self._progress.console.print(
                f"  {which}: {num_tokens} tokens, loss {loss:.4f}, held-out loss {held_out:.4f}"
            )

    def evaluating(self, done: int, total: int) -> None:
        if self._heal is not None and self._phase == _HEAL:
            done, total = self._heal.evaluated(done, total), self._heal.total
        self._count(done, total)

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)
        self._progress.console.print(
            f"  removed block {removal.block}: loss {removal.loss:.4f} "
            f"(dense {removal.dense_loss:.4f}){_lead(removal)}"
        )

    def warned(self, message: str) -> None:
        self._progress.console.print(f"[yellow]warning:[/] {escape(message)}")

    def _count(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    calibrating = repairing = _count

    def end(self) -> None:
        """End the phase. Only bars that count stay visible: of the search and of the repair."""
        if self._task is None:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        is_counted = task.total is not None
        total = task.completed if task.fields["at_most"] else task.total  # an early end is 100 %
        self._progress.update(self._task, total=total, visible=is_counted)
        self._progress.stop_task(self._task)
        self._task = None


def _lead(removal: Removal) -> str:
    if removal.margin is None:
        return ""
    error = "" if removal.margin_error is None else f" ± {removal.margin_error:.4f}"
    tie = ", a tie" if is_tie(removal.margin, removal.margin_error) else ""
    return f", margin {removal.margin:.4f}{error} over block {removal.runner_up}{tie}"
