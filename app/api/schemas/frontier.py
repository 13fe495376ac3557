"""The request body of a measurement of the frontier, and how far it is."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictBool, StringConstraints

from app.api.schemas.bodies import Body, documented, kind, optional
from app.api.schemas.generate import ModelName
from app.api.schemas.jobs import TaskNames
from app.compare.frontier import FrontierRequest
from pruning.evaluation.limits import Limits
from pruning.spec.tasks import MIN_QUESTIONS

MAX_LOADS = 16
MAX_MINUTES = 240
LoadName = Annotated[str, StringConstraints(min_length=1, max_length=16)]


class FrontierBody(Body):
    """What is measured, and the limits of the verdict."""

    model: ModelName = Field(description="A dense model.")
    loads: Annotated[list[LoadName], Field(min_length=1, max_length=MAX_LOADS)] = documented(
        ["stream", "8", "32", "prompt"], "Loads to measure: stream, a number of streams, or prompt."
    )
    max_ratio: Annotated[float, Field(ge=1)] = documented(
        Limits.max_ratio, "Maximum perplexity relative to the dense model, on every text."
    )
    min_speedup: Annotated[float, Field(ge=1)] = documented(
        Limits.min_speedup, "Minimum speed-up of what is worth taking."
    )
    min_task_share: Annotated[float, Field(ge=0, le=1)] | None = optional(
        "Minimum share of the dense model's accuracy above chance on tasks; null for no limit."
    )
    tasks: TaskNames | None = optional(
        "Tasks that the dense model and the candidates answer: generated ones, and those with a "
        "file in SLEB_TASK_DATA_DIR; null for all of these, and [] for none."
    )
    task_questions: Annotated[int, Field(ge=MIN_QUESTIONS)] = documented(
        100, "Questions of each task, the first ones."
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = optional(
        "Price of this machine, for the price of a million tokens."
    )
    max_minutes: Annotated[float, Field(ge=0, le=MAX_MINUTES)] = documented(
        20, "Time after which the measurement stops and says what is not decided."
    )
    stream: StrictBool = documented(False, "Respond with server-sent events that tell each step.")

    def asked(self) -> FrontierRequest:
        """Raises ``InvalidSpec``."""
        limits = Limits(self.max_ratio, self.min_speedup, min_task_share=self.min_task_share)
        tasks, times = (self.tasks, self.task_questions), (self.max_minutes, self.price_per_hour)
        return FrontierRequest(self.model, self.loads, limits, *tasks, *times)


class FrontierProgressView(BaseModel):
    object: Literal["frontier.progress"] = kind("frontier.progress")
    step: str = Field(description="What is done now, in words.")
