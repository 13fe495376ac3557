"""The supported families of models, one row of ``ARCHITECTURES`` each.

No other code depends on the family of a model.
"""

import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pruning.models.dense_rows import DENSE
from pruning.models.hybrid_rows import HYBRIDS
from pruning.models.layout import Architecture
from pruning.models.mixture_rows import MIXTURES
from pruning.models.towers import TOWERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class UnknownArchitecture(ValueError):
    """``ARCHITECTURES`` has no row for this type of model."""


class UnsupportedConfig(ValueError):
    """A model of a supported family whose configuration does not allow the removal of blocks."""


class CannotQuantize(UnsupportedConfig):
    """The blocks of the model have weights that cannot be quantized."""

    param = "quantize"


ARCHITECTURES: Mapping[str, Architecture] = {**DENSE, **HYBRIDS, **MIXTURES}

_MIN_SIMILARITY = 0.65  # of the names of types
_MAX_NAMED = 12  # config keys in a message


def architecture(config: "PreTrainedConfig") -> Architecture:
    """The row of this model. Raises ``UnknownArchitecture`` or ``UnsupportedConfig``."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise unknown_architecture(config.model_type, config.to_dict())
    if (method := _quantized_by(config)) is not None:
        raise UnsupportedConfig(
            f"the weights of this model are quantized ({method}), but only unquantized "
            "weights are supported: use the original unquantized model; `sleb models add` "
            "converts compressed-tensors, fp8 and mxfp4 weights"
        )
    for switch, expected in row.only:
        if (value := getattr(config, switch, expected)) != expected:
            raise UnsupportedConfig(
                f"{config.model_type} with {switch}={json.dumps(value)} is not supported: only "
                f"{switch}={json.dumps(expected)} is"
            )
    kinds = {kind for key in row.per_block for kind in getattr(config, key, None) or ()}
    if row.block_kinds and (unknown := kinds - row.block_kinds):
        raise UnsupportedConfig(
            f"{config.model_type} with blocks of type {', '.join(sorted(unknown))} is not "
            f"supported: only {', '.join(sorted(row.block_kinds))} blocks are"
        )
    for switch, harmless in row.depth_dependent:
        if (value := getattr(config, switch, harmless)) != harmless:
            raise UnsupportedConfig(
                f"{config.model_type} with {switch}={json.dumps(value)} cannot be pruned, "
                "because its blocks depend on their position: only "
                f"{switch}={json.dumps(harmless)} is supported"
            )
    return row


def check_quantizable(model_type: str) -> None:
    """Raise ``CannotQuantize`` for a family with other matrices than linear layers and experts."""
    if not ARCHITECTURES[model_type].is_linear:
        linear = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.is_linear))
        raise CannotQuantize(
            f"models of type {model_type!r} cannot be quantized, because not all of their "
            "weight matrices are linear layers or experts: leave quantize out, or use a "
            f"model of type {linear}"
        )


def engine_refusal(model_type: str) -> str | None:
    """Why the engine of this project does not serve a supported family; None if it does."""
    row = ARCHITECTURES[model_type]
    if row.is_served:
        return None
    what = "recurrent states besides keys and values"
    if row.has_unlike_keys:
        what = "keys and values of several shapes"
    return (
        f"{model_type} blocks have {what}, which the built-in engine does not support; "
        "vLLM may be able to serve the model: set SLEB_VLLM to its program"
    )


def unknown_architecture(model_type: str, keys: Collection[str] = ()) -> UnknownArchitecture:
    """The error for models of a type that has no row. It lists the supported types.

    ``keys`` are those of the config, if they are known.
    """
    nearest_to = _nearest(model_type, keys)
    return UnknownArchitecture(
        f"models of type {model_type!r} are not supported{nearest_to}: supported are "
        f"decoder-only language models of types {', '.join(sorted(ARCHITECTURES))}, and "
        f"the language models of {', '.join(sorted(TOWERS))}; models with an encoder "
        "are not supported"
    )


def _quantized_by(config: "PreTrainedConfig") -> str | None:
    """The name of the quantization method in the config, or None for plain weights."""
    scheme = getattr(config, "quantization_config", None)
    if scheme is None:
        scheme = getattr(config, "compression_config", None)  # older llm-compressor
    if scheme is None:
        return None
    fields = scheme if isinstance(scheme, dict) else scheme.to_dict()
    return str(fields.get("quant_method", "an unnamed method"))


def _nearest(model_type: str, keys: Collection[str]) -> str:
    """``" (the nearest supported type is ...)"`` with what differs; empty where nothing is known.

    It is the one of the most similar name, or else the one whose config has most of ``keys``.
    """
    from transformers import PreTrainedConfig  # noqa: PLC0415 - takes seconds

    similar = get_close_matches(model_type, ARCHITECTURES, n=1, cutoff=_MIN_SIMILARITY)
    own = set(keys) - PreTrainedConfig().to_dict().keys()
    lacking = {name: sorted(own - _keys(name)) for name in similar or sorted(ARCHITECTURES)}
    name = min(lacking, key=lambda each: len(lacking[each]))
    if not similar and not own:
        return ""
    named = ", ".join(lacking[name][:_MAX_NAMED])
    differs = f", which does not have {named}" if named else ""
    return f" (the nearest supported type is {name!r}{differs})"


def _keys(family: str) -> set[str]:
    """Those of its config, by all their names."""
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    config = AutoConfig.for_model(family)
    return {*config.to_dict(), *config.attribute_map}
