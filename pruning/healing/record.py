"""The healing of a checkpoint as its manifest records it."""

from dataclasses import dataclass
from typing import Self

from pruning.healing.progress import Check, Progress
from pruning.repair.record import Method
from pruning.spec.heal import Depths, Heal


class NotHealable(ValueError):
    """The checkpoint cannot be healed as it is."""


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
    ``num_bytes`` those of their values. ``method`` is the repair that they had before.
    """

    parent: str  # the checkpoint that was healed
    settings: Heal
    method: Method
    run: Run
    control: Run | None  # the same training of the dense model
    texts: tuple[TrainedText, ...]
    changed: tuple[str, ...]
    num_bytes: int

    @property
    def is_elastic(self) -> bool:
        """Whether one adapter heals every prefix of the removal order."""
        return self.settings.depths is Depths.ALL


def check_healable(name: str, healing: Healing | None) -> None:
    """Raises ``NotHealable`` for a checkpoint that is healed already."""
    if healing is not None:
        raise NotHealable(f"{name} is healed already: heal {healing.parent}, which it was made of")
