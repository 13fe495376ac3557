"""The pace and the memory of a healing at published shapes, with random weights and random text."""

from collections.abc import Mapping
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.heal_memory import Peak, counted, parts, process_bytes
from pruning.healing.adapter import adapted
from pruning.healing.text import HealingText
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, num_blocks, view
from pruning.models.store import pick_device
from pruning.spec.heal import Heal

SHAPES: Mapping[str, LlamaConfig] = MappingProxyType(
    {
        "1.1b": LlamaConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
        ),
        "7b": LlamaConfig(),  # its defaults
    }
)
_SHARE_REMOVED = 0.2
_SEQLEN, _NUM_WINDOWS = 512, 64
_NUM_STEPS = 3


def pace(shape: str, heal: Heal) -> dict[str, Any]:
    """Tokens per second of a training without a fifth of the blocks, and its memory."""
    before = process_bytes()
    device = torch.device(pick_device("auto"))
    model = _random(SHAPES[shape], device)
    total = num_blocks(model)
    keep = tuple(range(total - round(_SHARE_REMOVED * total)))
    adapter = adapted(view(model, keep, NO_OWN), heal)
    windows = torch.randint(model.config.vocab_size, (_NUM_WINDOWS, _SEQLEN))
    text = HealingText({"random": windows[1:]}, {"random": windows[:1]})
    steps = Training(model, adapter, text, heal).steps()
    peak = Peak(device, before)
    next(steps)  # allocates memory and chooses kernels
    found = median(next(steps).tokens_per_s for _ in range(_NUM_STEPS))
    num_bytes = peak.num_bytes()
    with counted(adapter.model) as activations:  # which keeps them, so the peak comes first
        next(steps)
    Console().print(f"{shape}: {found:.0f} tokens per second")
    return {
        "shape": shape,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_kept": len(keep),
        "batch_tokens": heal.batch_tokens,
        "tokens_per_s": found,
        "bytes": parts(model, NO_OWN, adapter, activations.num_bytes, num_bytes),
    }


def _random(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """A model whose weights are made on the device, in bfloat16."""
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(requires_grad=False)
    return model
