"""Directories with models that cannot be pruned, as they lie on a disk: a config, and weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

# with an encoder, with states instead of attention, with both kinds of blocks, for images, unknown
TYPES = ("t5", "bart", "mamba", "mamba2", "jamba", "paligemma", "mllama", "no_such_type")
QUANTIZED: Mapping[str, Mapping[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "fp8": {"activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    "compressed-tensors": {"format": "pack-quantized", "config_groups": {}},
    "mxfp4": {"modules_to_not_convert": []},
}


def write_unsupported(path: Path, model_type: str) -> Path:
    """A directory that looks like a model of that type."""
    path.mkdir(parents=True)
    config = {"model_type": model_type}
    if model_type != "no_such_type":
        config = AutoConfig.for_model(model_type).to_dict()
    (path / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    save_file({"some.weight": torch.zeros(2)}, path / "model.safetensors")
    return path


def quantize_config(path: Path, method: str) -> None:
    """Make the config of the model in ``path`` say that its weights are quantized so."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, **QUANTIZED[method]}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
