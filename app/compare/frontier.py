"""The frontier, measured by ``sleb frontier`` in a process with an engine of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.child_command import CommandFailed, json_of
from app.models.loads import num_streams
from pruning.config import Settings
from pruning.evaluation.limits import Limits
from pruning.spec.tasks import check_tasks


class FrontierBusy(RuntimeError):
    """Another frontier is being measured, and each would disturb the other."""


class FrontierFailed(RuntimeError):
    """The process ended without a verdict. The message is the last line that it wrote."""


@dataclass(frozen=True)
class FrontierRequest:
    """What to measure of a dense model, and the limits of the verdict."""

    model: str
    loads: Sequence[str]
    limits: Limits
    tasks: Sequence[str] | None  # None: all that need no download
    task_questions: int
    max_minutes: float
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        check_tasks(self.tasks or (), self.task_questions, None)
        for load in self.loads:
            num_streams(load)


async def measured(
    asked: FrontierRequest, settings: Settings, say: Callable[[str], object] = lambda _step: None
) -> dict[str, Any]:
    """What ``sleb frontier --json`` prints. Calls ``say`` with each step.

    The process ends if this is cancelled. Raises ``FrontierFailed``.
    """
    try:
        return await json_of("frontier", [*_arguments(asked)], settings, say)
    except CommandFailed as error:
        words = str(error) or f"the measurement of {asked.model} ended at once"
        raise FrontierFailed(words) from error


def _arguments(asked: FrontierRequest) -> Iterator[str]:
    limits = asked.limits
    options = {
        "loads": ",".join(asked.loads),
        "max-ratio": limits.max_ratio,
        "min-speedup": limits.min_speedup,
        "min-task-share": limits.min_task_share,
        "tasks": None if asked.tasks is None else ",".join(asked.tasks),
        "task-questions": asked.task_questions,
        "price-per-hour": asked.price_per_hour,
        "max-minutes": asked.max_minutes,
    }
    yield from (
        "--json",
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
    )
    yield from ("--", asked.model)
