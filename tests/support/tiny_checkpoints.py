"""Tiny models of every family on disk, in the layouts that checkpoints come in."""

import copy
import string
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.tiny import VOCAB_SIZE, tiny_model
from tests.support.tiny_directory import files_in, write_files

_Weights = dict[str, torch.Tensor]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter of plain text, and no more than the models of ``tiny`` have."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, *" \n"]
    vocabulary = {word: number for number, word in enumerate([*special, *letters][:VOCAB_SIZE])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return fast


def write_checkpoint(path: Path, family: str, *, tied: bool = False, layout: str = "whole") -> None:
    write_files(path, _files(family, tied, layout))


@cache
def _files(family: str, tied: bool, layout: str) -> Mapping[str, bytes]:
    with TemporaryDirectory() as folder:
        _save(Path(folder), family, tied=tied, layout=layout)
        return files_in(Path(folder))


def _save(path: Path, family: str, *, tied: bool, layout: str) -> None:
    model = copy.deepcopy(tiny_model(family))
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(path, max_shard_size="20KB" if layout == "shards" else "5GB")
    letter_tokenizer().save_pretrained(path)
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
