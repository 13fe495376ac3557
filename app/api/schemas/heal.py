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
    """Train the pruned model to predict what the dense one predicts, and publish it as well."""

    # These ranges only document the API: the spec checks them.
    num_tokens: int = _count(
        "num_tokens",
        "Tokens to train on. Texts are those of the calibration, without the documents "
        "that select or evaluate; they are repeated as often as needed.",
    )
    max_minutes: float | None = documented(
        Heal.max_minutes, "End after this time even if tokens are left.", _ABOVE_0
    )
    rank: int = _count("rank", "Rank of the adapters.")
    alpha: float = documented(Heal.alpha, "Adapters are scaled by alpha / rank.", _ABOVE_0)
    learning_rate: float | None = documented(
        Heal.learning_rate,
        "The highest one, by default by the width of the model; it rises first, then "
        "falls along a cosine.",
        _ABOVE_0,
    )
    batch_tokens: int = _count("batch_tokens", "Tokens of a step of the optimiser.")
    warmup: float = documented(
        Heal.warmup,
        "Share of the training in which the learning rate rises.",
        {"minimum": 0, "exclusiveMaximum": 1},
    )
    clip_norm: float = documented(
        Heal.clip_norm, "Maximum norm of the gradient of a step.", _ABOVE_0
    )
    hidden_weight: float = documented(
        Heal.hidden_weight,
        "Weight of the error of the last hidden state, beside the divergence.",
        {"minimum": 0},
    )
    checkpoint_activations: StrictBool = documented(
        Heal.checkpoint_activations,
        "Compute activations again in the backward pass: less memory, more time.",
    )
    steps_per_check: int = _count(
        "steps_per_check", "Steps between two measurements on held-out text. The best step is kept."
    )
    patience: int = _count(
        "patience", "End after so many measurements in a row without a new lowest loss."
    )
    seed: int = _count("seed", "Of the adapters and of the order of the text.")
    control: StrictBool = documented(
        Heal.control, "Train the dense model in the same way, for comparison."
    )
    depths: Depths = documented(
        Heal.depths,
        "deepest: the model of all removals. all: one adapter for every prefix of the "
        "removal order, which are then NAME@JOB+healed-k and NAME@-k+healed.",
    )


class HealEstimateView(BaseModel):
    """What a healing would need at most. It may end earlier, as ``patience`` says."""

    num_tokens: int = Field(description="To train the pruned model on.")
    control_tokens: int = Field(description="To train the dense model on; 0 without a control.")
    estimated_s: float | None = Field(
        description="Of both trainings, by the pace of earlier ones; null if there are none."
    )
    estimated_from: list[str] = Field(
        description="The earlier jobs used: same model, windows and way to train."
    )
    adapter_bytes: int = Field(description="Of the adapters of both models, on disk.")
    training_bytes: int = Field(
        description="Adapters in training with their gradients and two moments each, in memory. "
        "The weights are those of the dense model; activations are not counted."
    )
    checkpoint_bytes: int = Field(
        description="Weights, repairs and adapters of the healed checkpoint, on disk beside the "
        "pruned one."
    )


class HealProgressView(BaseModel):
    """The last step. Losses are nats of divergence from the dense model per token."""

    training: Literal["healed", "control"] = Field(
        description="The model in training; the control is the dense one."
    )
    num_tokens: int = Field(description="Trained on so far.")
    ratio: float = Field(description="Share of the tokens or minutes that are used.")
    loss: float = Field(description="Of this step.")
    held_out_loss: float | None = Field(description="Null before the first measurement.")
    tokens_per_s: float = Field(description="Of this step.")
