"""Whether a repair is sound for a model, by its family and config, and what it leaves."""

import json

from transformers import PreTrainedConfig

from pruning.models.architectures import architecture


def refusal(config: PreTrainedConfig) -> str | None:
    """Why models of this family and configuration allow no repair; None if they do."""
    for key, value in architecture(config).writes.requires:
        if getattr(config, key, value) != value:
            actual = json.dumps(getattr(config, key))
            return (
                f"ridge is not possible for this {config.model_type}: it needs "
                f"{key}={json.dumps(value)}, and the config has {actual}"
            )
    return None


def limit(config: PreTrainedConfig) -> str | None:
    """What a repair of this model leaves as it is, in a sentence. None if it may fit all."""
    row = architecture(config)
    if not row.has_experts:
        return None
    layers = " and ".join(each.layer for each in row.writes.refit)
    return (
        f"ridge fits {layers} of this {config.model_type}: its experts keep their weights, as each "
        "sees a part of the tokens"
    )
