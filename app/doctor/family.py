"""The doctor's report of one model: whether it is supported, how it is served, what repairs it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from app.doctor.finding import Finding, fine, note, wrong
from app.engine.attention import UnsupportedAttention, attention_windows
from app.engine.running.flat_model import flat_model
from pruning.models.architectures import (
    UnknownArchitecture,
    UnsupportedConfig,
    architecture,
    engine_refusal,
)
from pruning.models.store import NotAModel, parse_config
from pruning.models.towers import tower_type
from pruning.plural import counted
from pruning.repair.order import limit, refusal


def family(path: Path) -> list[Finding]:
    """Findings about the model in this directory, by its config: no weights are read."""
    try:
        config = parse_config(path)
        architecture(config)
    except NotAModel as error:
        return [wrong("family", str(error), "give a directory with the config.json of a model")]
    except (UnknownArchitecture, UnsupportedConfig) as error:
        advice = (
            "docs/families.md lists families, docs/unsupported-families.md why others have no row"
        )
        return [wrong("family", str(error), advice)]
    blocks = counted(config.num_hidden_layers, "block")
    whole = tower_type(path)
    said = f"{config.model_type} is supported; the model has {blocks}"
    if whole is not None:
        said = (
            f"{whole} is supported: its language tower, a {config.model_type} with {blocks}, is "
            "pruned and served, and the rest is written unchanged"
        )
    return [
        fine("family", said),
        _served(config),
        _repairs(config),
    ]


def _served(config: PreTrainedConfig) -> Finding:
    refusal = engine_refusal(config.model_type)
    try:
        attention_windows(config)
    except UnsupportedAttention as error:
        refusal = refusal or str(error)
    if refusal is not None:
        return note("served", f"not by the own engine: {refusal}", "serve the checkpoint with vLLM")
    with torch.device("meta"):  # modules without values
        model = AutoModelForCausalLM.from_config(config).eval()
        is_flat = flat_model(model) is not None
    if is_flat:
        return fine("served", "by the own engine, which runs the blocks itself")
    return fine("served", "by the own engine, which calls the model's own forward")


def _repairs(config: PreTrainedConfig) -> Finding:
    if (against := refusal(config)) is not None:
        return note("repair", against, "prune fewer blocks, or heal the checkpoint")
    left = limit(config)
    return fine("repair", f"possible by ridge; {left}" if left else "possible by ridge")
