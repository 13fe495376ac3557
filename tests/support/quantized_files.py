"""Tiny models whose files have quantized weights, and what these mean."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.checkpoints.quantized import save_quantized
from pruning.models.quantize import plain_weights, quantized
from pruning.models.store import load
from pruning.spec.prune import Quantize
from tests.support.families import CONFIGS, LLAMA_LIKE
from tests.support.tiny_checkpoints import letter_tokenizer, write_checkpoint
from tests.support.tiny_directory import edit_config

Weights = dict[str, torch.Tensor]
_SIDE = 16  # of a block with one scale
_ONES, _ONE = 0x22, 127  # two numbers 1 of 4 bits, and the exponent of 1


def write_fp8(path: Path) -> Weights:
    write_checkpoint(path, "llama")
    stored: Weights = {}
    meant: Weights = {}
    for name, weight in load_file(path / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if ".layers." in name and weight.ndim == 2:
            blocks = weight.unfold(0, _SIDE, _SIDE).unfold(1, _SIDE, _SIDE)
            scales = blocks.abs().amax(dim=(2, 3)) / torch.finfo(torch.float8_e4m3fn).max
            wide = scales.repeat_interleave(_SIDE, 0).repeat_interleave(_SIDE, 1)
            stored[name] = (weight / wide).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            meant[name] = stored[name].float() * wide
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    method = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    edit_config(path, quantization_config={**method, "weight_block_size": [_SIDE, _SIDE]})
    return meant


def write_compressed_tensors(path: Path) -> Weights:
    write_checkpoint(path.with_name("plain"), "llama")
    model = quantized(load(path.with_name("plain")).model, Quantize.INT8)
    path.mkdir()
    save_quantized(model, path, 10**9)
    letter_tokenizer().save_pretrained(path)
    return dict(plain_weights(model))


def write_mxfp4(path: Path) -> Weights:
    """Every expert's matrices are ones."""
    settings = {**LLAMA_LIKE, **CONFIGS["gpt_oss"], "intermediate_size": 64}
    config = AutoConfig.for_model("gpt_oss", **settings, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    letter_tokenizer().save_pretrained(path)
    stored: Weights = {}
    meant: Weights = {}
    for name, weight in load_file(path / "model.safetensors").items():
        meant[name] = weight
        if name.endswith(("gate_up_proj", "down_proj")):
            meant[name] = torch.ones_like(weight)
            experts, width_in, width_out = weight.shape
            shape = (experts, width_out, width_in // 32)
            stored[f"{name}_blocks"] = torch.full((*shape, 16), _ONES, dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.full(shape, _ONE, dtype=torch.uint8)
        else:
            stored[name] = weight
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    others = ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"]
    method = {"quant_method": "mxfp4", "modules_to_not_convert": others}
    edit_config(path, quantization_config=method)
    return meant
