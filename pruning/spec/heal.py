"""``Heal``: how a pruned model is trained to predict what its dense parent predicts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from pruning.spec import refused

# The lowest and the highest value of each integer
COUNTS: Mapping[str, tuple[int, int]] = {
    "num_tokens": (1, 2**40),
    "rank": (1, 4096),
    "batch_tokens": (1, 2**28),
    "steps_per_check": (1, 2**31),
    "patience": (1, 2**31),
    "seed": (0, 2**32 - 1),
}

_BEST_RATE, _BEST_RATE_WIDTH = 2e-3, 576  # of the demo model
_RATE_EXPONENT = 0.781


class Depths(StrEnum):
    """Which models of a removal order a healing trains."""

    DEEPEST = "deepest"  # the one without all removed blocks
    ALL = "all"  # every prefix, with one adapter


# What records imply that are older than a setting
_LATER: Mapping[str, object] = {"depths": Depths.DEEPEST}


@dataclass(frozen=True)
class Heal:
    """The training of an adapter (LoRA, arXiv 2106.09685) on the blocks that stay.

    It ends after ``num_tokens``, after ``max_minutes`` if that is sooner, or after ``patience``
    measurements on held-out text in a row without a new lowest loss, whose step is kept.
    """

    num_tokens: int = 500_000
    max_minutes: float | None = None
    rank: int = 16
    alpha: float = 32.0  # the adapter's product is multiplied by alpha / rank
    learning_rate: float | None = None  # the highest one; None: by the width of the model
    batch_tokens: int = 1024  # of a step of the optimiser
    warmup: float = 0.05  # share of the training in which the learning rate rises
    clip_norm: float = 1.0  # of the gradient of a step
    hidden_weight: float = 0.0  # of the error of the last hidden state, beside the divergence
    checkpoint_activations: bool = False  # compute them again in the backward pass: less memory
    steps_per_check: int = 20  # between two measurements on held-out text
    patience: int = 10  # the loss goes back and forth while the learning rate is high
    seed: int = 0
    control: bool = True  # train the dense model in the same way, for comparison
    depths: Depths = Depths.ALL

    def __post_init__(self) -> None:
        if self.depths not in [*Depths]:
            raise refused("heal.depths", self.depths, f"one of {', '.join(Depths)}")
        object.__setattr__(self, "depths", Depths(self.depths))
        for name, (low, high) in COUNTS.items():
            if not low <= getattr(self, name) <= high:
                raise refused(f"heal.{name}", getattr(self, name), f"{low} to {high}")
        for name in ("alpha", "learning_rate", "clip_norm", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:  # false for NaN
                raise refused(f"heal.{name}", value, "a finite number above 0")
        if not 0 <= self.warmup < 1:
            raise refused("heal.warmup", self.warmup, "a fraction of at least 0 and less than 1")
        if not 0 <= self.hidden_weight < math.inf:
            raise refused("heal.hidden_weight", self.hidden_weight, "a finite number, 0 or more")

    def rate(self, width: int) -> float:
        """The highest learning rate for a model with hidden states of this width.

        By default it falls with the width as the best ones of LoRA were published to (Thinking
        Machines, 2025), from what is best for the demo model.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return _BEST_RATE * math.pow(min(1.0, _BEST_RATE_WIDTH / width), _RATE_EXPONENT)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def digested(self) -> dict[str, Any]:
        """What a digest is made of: not what older records imply, so that theirs stay valid."""
        settings = self.to_dict()
        return {name: value for name, value in settings.items() if value != _LATER.get(name, ())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``, also after JSON. Raises ``InvalidSpec``."""
        return cls(**{**_LATER, **data})
