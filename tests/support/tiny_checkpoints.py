"""Tiny models of every family on disk, in the layouts that checkpoints come in."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.support.tiny import tiny_model
from tests.support.tiny_directory import tiny_tokenizer

_Weights = dict[str, torch.Tensor]


def write_checkpoint(path: Path, family: str, *, tied: bool = False, layout: str = "whole") -> None:
    model = copy.deepcopy(tiny_model(family))
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(path, max_shard_size="20KB" if layout == "shards" else "5GB")
    tiny_tokenizer().save_pretrained(path)
    if layout in LAYOUTS:
        file = path / "model.safetensors"
        save_file(LAYOUTS[layout](load_file(file), model), file, metadata={"format": "pt"})


def _without_prefix(weights: _Weights, model: PreTrainedModel) -> _Weights:
    prefix = f"{model.base_model_prefix}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _head_alone(weights: _Weights, model: PreTrainedModel) -> _Weights:
    """The name that ``save_pretrained`` leaves out, instead of the one that it writes."""
    head, embeddings = _tied_names(model)
    return {head if name == embeddings else name: tensor for name, tensor in weights.items()}


def _both(weights: _Weights, model: PreTrainedModel) -> _Weights:
    head, embeddings = _tied_names(model)
    return {**weights, head: weights[embeddings].clone()}


def _both_but_different(weights: _Weights, model: PreTrainedModel) -> _Weights:
    head, embeddings = _tied_names(model)
    return {**weights, head: weights[embeddings] + 1}


def _tied_names(model: PreTrainedModel) -> tuple[str, str]:
    (names,) = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    head, embeddings = names
    return head, embeddings


LAYOUTS: Mapping[str, Callable[[_Weights, PreTrainedModel], _Weights]] = {
    "without prefix": _without_prefix,
    "head alone": _head_alone,
    "both": _both,
    "both but different": _both_but_different,
}
