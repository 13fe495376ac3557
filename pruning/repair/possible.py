"""Which repairs are sound for a model, by its family and config, and what stands against others."""

import json
from collections.abc import Iterator, Mapping

from transformers import PreTrainedConfig

from pruning.models.architectures import architecture
from pruning.repair.record import Method

_NO_SCALE = (
    "blocks read hidden states without a norm, so that a factor of them changes what is read"
)
_NO_RIDGE = "no matrix of its blocks writes into the hidden states by itself"


def possible_methods(config: PreTrainedConfig) -> tuple[Method, ...]:
    """The repairs that are sound for models of this family and configuration."""
    against = refusals(config)
    return tuple(method for method in (Method.SCALE, Method.RIDGE) if method not in against)


def refusals(config: PreTrainedConfig) -> Mapping[Method, str]:
    """Why the other repairs are not possible."""
    writes = architecture(config).writes
    found = {}
    if not writes.refit:
        found[Method.RIDGE] = _NO_RIDGE
    if not writes.scaled:
        found[Method.SCALE] = _NO_SCALE
    for key, value in writes.requires:
        if getattr(config, key, value) != value:
            found |= dict.fromkeys((Method.SCALE, Method.RIDGE), _needs(config, key, value))
    for key, value in writes.scale_requires:
        if getattr(config, key, value) != value:
            found.setdefault(Method.SCALE, _needs(config, key, value))
    return found


def limits(config: PreTrainedConfig) -> Iterator[str]:
    """What the repairs of this model leave as it is, a sentence each. None if they may fit all."""
    for method, reason in refusals(config).items():
        yield f"{method} is not possible for this {config.model_type}: {reason}"
    row = architecture(config)
    if row.has_experts and Method.RIDGE not in refusals(config):
        layers = " and ".join(each.layer for each in row.writes.refit)
        yield (
            f"ridge fits {layers} of this {config.model_type}: its experts keep their weights, as "
            "each sees a part of the tokens"
        )


def _needs(config: PreTrainedConfig, key: str, value: object) -> str:
    given = json.dumps(getattr(config, key))
    return f"it needs {key}={json.dumps(value)}, and the config has {given}"
