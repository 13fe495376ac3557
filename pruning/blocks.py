"""Transformer blocks of a Hugging Face model: how many there are, and views without some of them.

The only file that knows module paths. A family is a row of ``ARCHITECTURES``, never a branch.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_Module = TypeVar("_Module", bound=nn.Module)


class UnknownArchitecture(ValueError):
    """No row of ``ARCHITECTURES`` says where this model keeps its blocks."""


class UnsupportedConfig(ValueError):
    """A known family, in a configuration that does not survive the removal of blocks."""


@dataclass(frozen=True)
class Parts:
    """Names in a block of the usual kind: attention, then a feed-forward part, each between two
    norms and added to what came in. A family may lack a norm."""

    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # one alone is all three
    head_norms: tuple[str, ...] = ()  # of queries and of keys
    output: str = "o_proj"
    feed_forward: str = "mlp"
    rotation: str = "model.rotary_emb"  # a path from the causal language model
    rotates_by_kind: bool = False  # each kind of attention has frequencies of its own


@dataclass(frozen=True)
class Architecture:
    """Where a family keeps things; paths are dotted and start at the causal language model."""

    blocks: str
    tail: tuple[str, ...]  # what follows the last block, up to the head; some may be None
    per_block: tuple[str, ...] = ("layer_types",)  # config lists with one entry per block
    logit_softcap: str | None = None  # config key: logits become cap * tanh(logits / cap)
    depth_dependent: tuple[str, ...] = ()  # config switches that make a weight depend on its depth
    parts: Parts | None = None  # None where blocks are not of the usual kind


_LLAMA_LIKE = Architecture(blocks="model.layers", tail=("model.norm",), parts=Parts())
_GEMMA_LIKE = replace(_LLAMA_LIKE, logit_softcap="final_logit_softcapping")
_HEAD_NORMS = ("q_norm", "k_norm")
_NORMS_BEHIND = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm",
               "pre_feedforward_layernorm", "post_feedforward_layernorm")  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gemma": _LLAMA_LIKE,
        "gemma2": replace(_GEMMA_LIKE, parts=None),  # caps the scores of its attention
        "gemma3_text": replace(
            _GEMMA_LIKE,
            parts=Parts(norms=_FOUR_NORMS, head_norms=_HEAD_NORMS, rotates_by_kind=True),
        ),
        "gpt2": Architecture(
            blocks="transformer.h",
            tail=("transformer.ln_f",),
            depth_dependent=("scale_attn_by_inverse_layer_idx",),
        ),
        "gpt_neox": Architecture(blocks="gpt_neox.layers", tail=("gpt_neox.final_layer_norm",)),
        "llama": _LLAMA_LIKE,
        "mistral": _LLAMA_LIKE,
        "olmo2": replace(_LLAMA_LIKE, parts=Parts(norms=_NORMS_BEHIND, head_norms=_HEAD_NORMS)),
        "opt": Architecture(
            blocks="model.decoder.layers",
            tail=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        ),
        "phi3": replace(_LLAMA_LIKE, parts=Parts(projections=("qkv_proj",))),
        "qwen2": _LLAMA_LIKE,
        "qwen3": replace(_LLAMA_LIKE, parts=Parts(head_norms=_HEAD_NORMS)),
        "smollm3": replace(_LLAMA_LIKE, per_block=("layer_types", "no_rope_layers")),
        "starcoder2": _LLAMA_LIKE,
    }
)


def architecture(config: PreTrainedConfig) -> Architecture:
    """The row for this model; raises ``UnknownArchitecture`` or ``UnsupportedConfig``."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UnknownArchitecture(
            f"models of type {config.model_type!r} are not supported; "
            f"the known ones are {', '.join(sorted(ARCHITECTURES))}"
        )
    for switch in row.depth_dependent:
        if getattr(config, switch, False):
            raise UnsupportedConfig(
                f"{config.model_type} with {switch}=true cannot lose blocks: its weights depend on "
                f"their depth, so a pruned checkpoint would compute something else"
            )
    return row


def num_blocks(model: PreTrainedModel) -> int:
    return len(block_list(model))


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.get_submodule(architecture(model.config).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def view(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """The model made of the blocks ``keep`` (ascending), sharing every parameter with ``model``.

    Shells are new, tensors are not: a view costs no weight memory, and ``model`` itself stays
    as it was to the last bit. Raises ``ValueError`` if ``keep`` names no ascending blocks.
    """
    path = architecture(model.config).blocks
    blocks = block_list(model)
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < len(blocks):
        raise ValueError(f"keep={list(keep)} must be ascending indices of the {len(blocks)} blocks")
    config = _config_of(model.config, keep)
    root = _shell(model, config)
    parent: nn.Module = root
    for name in path.split("."):
        child = _shell(parent.get_submodule(name), config)
        parent._modules[name] = child
        parent = child
    parent._modules = {
        str(position): _renumbered(blocks[index], config, position)
        for position, index in enumerate(keep)
    }
    root.generation_config = copy.deepcopy(model.generation_config)
    return root


@dataclass(frozen=True)
class BlockCall:
    """What a model hands to one block beside the hidden states: masks, positions, rotations.

    None of it depends on the hidden states, so it holds for any other set of kept blocks.
    """

    block: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.block(hidden, *self.args, **self.kwargs)
        assert isinstance(output, torch.Tensor)
        return output


def block_calls(
    model: PreTrainedModel, token_ids: torch.Tensor
) -> tuple[torch.Tensor, tuple[BlockCall, ...]]:
    """The hidden states in front of the first block ``[batch, seqlen, hidden_size]``, and how the
    model calls every block on windows of this length, without a cache. No block runs.

    The calls are those for a single window, which broadcast over any number of them.
    """
    calls: list[BlockCall] = []

    def note(block: nn.Module, hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(BlockCall(block, args, kwargs))
        return hidden

    skeleton = view(model, range(num_blocks(model)))
    for block, shell in zip(block_list(model), block_list(skeleton), strict=True):
        shell.__dict__.update(forward=partial(note, block), _forward_hooks={})
    for parent, name in _tail(skeleton):
        setattr(parent, name, nn.Identity())
    skeleton.base_model(token_ids[:1], use_cache=False)
    noted = tuple(calls)
    hidden: torch.Tensor = skeleton.base_model(token_ids, use_cache=False).last_hidden_state
    return hidden, noted


def finish(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states behind the last block to those in front of the head, both ``[..., width]``."""
    for parent, name in _tail(model):
        hidden = getattr(parent, name)(hidden)
    return hidden


def final_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[..., vocab]``, in the model's dtype, of hidden states ``[..., hidden_size]``."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    row = architecture(model.config)
    cap = getattr(model.config, row.logit_softcap) if row.logit_softcap else None
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _tail(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """The modules between the last block and the head that this model has, by parent and name."""
    for path in architecture(model.config).tail:
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        if getattr(parent, name) is not None:
            yield parent, name


def _config_of(config: PreTrainedConfig, keep: Sequence[int]) -> PreTrainedConfig:
    pruned = copy.deepcopy(config)
    for key in architecture(config).per_block:
        if (entries := getattr(config, key, None)) is not None:
            setattr(pruned, key, [entries[index] for index in keep])
    pruned.num_hidden_layers = len(keep)
    return pruned


def _renumbered(block: nn.Module, config: PreTrainedConfig, position: int) -> nn.Module:
    shell = _shell(block, config)
    if "layer_idx" in shell.__dict__:
        shell.__dict__["layer_idx"] = position
    for name, child in block._modules.items():
        if child is not None:
            shell._modules[name] = _renumbered(child, config, position)
    return shell


def _shell(module: _Module, config: PreTrainedConfig) -> _Module:
    """A new module over the same tensors: ``copy.copy`` alone would share the dicts as well."""
    shell = copy.copy(module)
    for name, value in module.__dict__.items():
        if isinstance(value, dict):
            shell.__dict__[name] = copy.copy(value)
    if isinstance(module.__dict__.get("config"), PreTrainedConfig):
        shell.__dict__["config"] = config
    return shell
