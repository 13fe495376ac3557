"""Healing: the request body, whose defaults are those of ``Heal``, and its progress."""

from typing import Any, Literal

from pydantic import BaseModel, Field, StrictBool

from app.api.schemas.bodies import Body, documented
from pruning.spec.heal import COUNTS, Depths, Heal

_ABOVE_0: dict[str, Any] = {"exclusiveMinimum": 0}


def _count(name: str, description: str) -> Any:  # noqa: ANN401 - an integer
    """A number with the default and the range of the spec."""
    low, high = COUNTS[name]
    return documented(getattr(Heal, name), description, {"minimum": low, "maximum": high})


class HealBody(Body):
    """Train the pruned model to match the predictions of the dense model, and publish it too."""

    # These ranges only document the API: the spec checks them.
    num_tokens: int = _count(
        "num_tokens",
        "Number of training tokens. The text is that of the calibration, without "
        "documents used for selection or evaluation; it is repeated as needed.",
    )
    max_minutes: float | None = documented(
        Heal.max_minutes, "Maximum training time, in minutes.", _ABOVE_0
    )
    rank: int = _count("rank", "Rank of the adapters.")
    alpha: float = documented(
        Heal.alpha, "Scale of the adapters, applied as alpha / rank.", _ABOVE_0
    )
    learning_rate: float | None = documented(
        Heal.learning_rate,
        "Peak learning rate; by default it depends on the width of the model. Warmup "
        "is followed by cosine decay.",
        _ABOVE_0,
    )
    batch_tokens: int = _count("batch_tokens", "Tokens per optimizer step.")
    warmup: float = documented(
        Heal.warmup,
        "Fraction of the training with a rising learning rate.",
        {"minimum": 0, "exclusiveMaximum": 1},
    )
    clip_norm: float = documented(Heal.clip_norm, "Maximum gradient norm of a step.", _ABOVE_0)
    hidden_weight: float = documented(
        Heal.hidden_weight,
        "Weight of the last hidden state's error in the loss, in addition to the divergence.",
        {"minimum": 0},
    )
    checkpoint_activations: StrictBool = documented(
        Heal.checkpoint_activations,
        "Recompute activations in the backward pass: less memory, more time.",
    )
    steps_per_check: int = _count(
        "steps_per_check", "Steps between two measurements on held-out text. The best step is kept."
    )
    patience: int = _count(
        "patience", "Stop after this many measurements without a new lowest loss."
    )
    seed: int = _count("seed", "Seed of the adapters and of the text order.")
    control: StrictBool = documented(
        Heal.control, "Train the dense model in the same way, as a control."
    )
    depths: Depths = documented(
        Heal.depths,
        "deepest: train only the deepest model. all: train one adapter for all depths, "
        "which are published as NAME@JOB+healed-k and NAME@-k+healed.",
    )


class HealEstimateView(BaseModel):
    """Maximum requirements of a healing. It may stop earlier, see ``patience``."""

    num_tokens: int = Field(description="Tokens for training the pruned model.")
    control_tokens: int = Field(
        description="Tokens for training the dense model; 0 without a control."
    )
    estimated_s: float | None = Field(
        description="Estimated seconds of both trainings, from earlier jobs; null without earlier "
        "jobs."
    )
    estimated_from: list[str] = Field(
        description="Earlier jobs behind the estimate, with the same model, windows and training "
        "settings."
    )
    adapter_bytes: int = Field(description="Bytes of the adapters of both models, on disk.")
    training_bytes: int = Field(
        description="Bytes of the adapters in training, with gradients and two moments each, in "
        "memory. The weights are those of the dense model; activations are not counted."
    )
    checkpoint_bytes: int = Field(
        description="Bytes of the healed checkpoint on disk: weights, repairs and adapters."
    )


class HealProgressView(BaseModel):
    """The last training step. Losses are divergences from the dense model in nats per token."""

    training: Literal["healed", "control"] = Field(
        description="Model in training; control is the dense model."
    )
    num_tokens: int = Field(description="Training tokens so far.")
    ratio: float = Field(description="Fraction of the tokens or minutes used so far.")
    loss: float = Field(description="Training loss of this step.")
    held_out_loss: float | None = Field(
        description="Loss on held-out text; null before the first measurement."
    )
    tokens_per_s: float = Field(description="Training speed of this step, in tokens per second.")
