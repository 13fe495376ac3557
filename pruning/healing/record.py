"""A healing as data: how far its training is, and what the manifest of a checkpoint records of it.

Knows no torch, so that what follows a job stays light.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pruning.repair.record import Method
from pruning.spec.heal import Depths, Heal


class NotHealable(ValueError):
    """The checkpoint cannot be healed as it is."""


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


@dataclass(frozen=True)
class TrainedText:
    """The windows of one domain: ``part`` is ``train`` or ``held_out``."""

    part: str
    domain: str
    source: str
    num_windows: int
    seqlen: int
    digest: str


@dataclass(frozen=True)
class Run:
    """What a training did. The adapter is that of ``best``, the last of the control's ``checks``.

    ``losses`` are those of each step in nats of divergence from the dense model per token.
    """

    num_steps: int
    num_tokens: int
    seconds: float
    best: Check
    checks: tuple[Check, ...]
    losses: tuple[float, ...]

    @classmethod
    def of(cls, progress: Progress) -> Self:
        return cls(
            progress.step,
            progress.num_tokens,
            progress.seconds,
            progress.best,
            progress.checks,
            progress.losses,
        )


@dataclass(frozen=True)
class Healing:
    """How a pruned checkpoint was healed, and from which one.

    ``changed`` are the parameters of the dense model, by name, that have other values here, and
    ``num_bytes`` those of their values. ``method`` is the repair that they had before. ``adapted``
    are the blocks that the adapter is on, of each depth that was trained; if there are none, as in
    older records, it is on all blocks that it has matrices for.
    """

    parent: str  # the checkpoint that was healed
    settings: Heal
    method: Method
    run: Run
    control: Run | None  # the same training of the dense model
    texts: tuple[TrainedText, ...]
    changed: tuple[str, ...]
    num_bytes: int
    adapted: tuple[tuple[int, ...], ...] = ()

    @property
    def is_elastic(self) -> bool:
        """Whether one adapter heals every prefix of the removal order."""
        return self.settings.depths is Depths.ALL


def check_healable(name: str, healing: Healing | None) -> None:
    """Raises ``NotHealable`` for a checkpoint that is healed already."""
    if healing is not None:
        raise NotHealable(f"{name} is already healed: heal {healing.parent} instead")
