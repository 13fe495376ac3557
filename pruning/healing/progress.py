"""How far a training is, as data. Knows no torch, so that what follows a job stays light."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The loss on held-out text after so many steps, in nats of divergence per token.

    Where several depths are trained, ``loss`` is the mean over them, and ``by_depth`` has those of
    1, 2 ... removed blocks.
    """

    step: int
    num_tokens: int
    loss: float
    by_domain: Mapping[str, float]
    by_depth: tuple[float, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step that was made. ``check`` is the measurement behind it, if there was one."""

    number: int
    num_tokens: int  # of this and all steps before
    loss: float
    learning_rate: float
    ratio: float  # of the budget that is used
    tokens_per_s: float  # of this step
    seconds: float  # of all steps and checks so far, those of earlier processes among them
    check: Check | None = None


@dataclass(frozen=True)
class Progress:
    """How far a training is. ``digest`` says of what: its settings, text and model."""

    digest: str
    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    num_risen: int = 0  # checks since the last one that was the best
    losses: tuple[float, ...] = ()  # of each step
    checks: tuple[Check, ...] = ()

    @property
    def best(self) -> Check:
        """The check with the lowest loss, the first of equal ones."""
        return min(self.checks, key=lambda check: check.loss)
