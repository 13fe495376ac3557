"""Checkpoints with quantized weights in the compressed-tensors format, which vLLM reads.

The weights are those of ``pruning.models.rounding``, so what is written is what was measured. Needs
the extra ``quantize``.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.texts import default_seqlen, text_windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.quality import Perplexity
from pruning.extras import require_extra
from pruning.models.architectures import ARCHITECTURES, CannotQuantize, architecture
from pruning.models.forward import Forward, InMemoryForward
from pruning.models.load_checks import load_strictly
from pruning.models.quantize import other_parameters, quantized_layers
from pruning.models.rounding import QuantizedLinear
from pruning.models.store import read_config
from pruning.process import hide_compressed_tensors_bars
from pruning.spec.calibration import PACKAGED
from pruning.spec.prune import Quantize

_NUM_WINDOWS, _SEQLEN = 8, 512  # of each text in a card
_FORMAT = "pack-quantized"  # 32 bits have 4 or 8 integers; vLLM's kernels for plain activations


def require_compressed_tensors() -> None:
    """Raise ``ExtraMissing`` unless it is installed. Call before loading a model."""
    require_extra("quantize", "writing or reading a quantized checkpoint")


def check_readable(model_type: str) -> None:
    """Raise ``CannotQuantize`` if transformers does not read quantized weights of this family."""
    if not ARCHITECTURES[model_type].loads_quantized:
        raise CannotQuantize(
            f"transformers cannot load quantized {model_type} models: leave int8 or int4 out"
        )


def save_quantized(model: PreTrainedModel, directory: Path, shard_bytes: int) -> None:
    """Write a model with quantized layers: configs and weights, in shards of ``shard_bytes``."""
    config = _quantization_config(model)
    model.save_pretrained(directory, state_dict={})  # only the configs
    file = directory / "config.json"
    fields = {**json.loads(file.read_text(encoding="utf-8")), "quantization_config": config}
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_torch_state_dict(
        dict(_stored(model)),
        directory,
        max_shard_size=shard_bytes,
        metadata={"format": "pt"},
    )


def load_quantized(directory: Path, device: str) -> PreTrainedModel:
    """Load such a checkpoint as plain transformers does, with weights made plain.

    It has no other tensors then, and its config does not say any more that it is quantized. Raises
    ``ValueError`` or ``OSError``.
    """
    require_compressed_tensors()
    hide_compressed_tensors_bars()
    dtype = read_config(directory).dtype
    loaded = load_strictly(directory, AutoModelForCausalLM, dtype=dtype)
    model: PreTrainedModel = loaded.to(device).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long, device=device))  # makes the weights plain
    del model.config.quantization_config
    for module in model.modules():
        for name in [name for name in module._parameters if name.startswith("weight_")]:
            del module._parameters[name]
    return model


def compared_perplexities(
    forward: Forward, loaded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Perplexity, Perplexity]]:
    """Perplexities of a model with plain weights, and of its quantized form as it was loaded.

    On the packaged texts, one after another, by name; the second has its ratio to the first.
    """
    seqlen = min(_SEQLEN, default_seqlen(loaded))
    for text in PACKAGED:
        windows = text_windows(
            text, Path(), loaded, tokenizer, seqlen=seqlen, num_windows=_NUM_WINDOWS
        )
        plain = measure_perplexity(forward, windows)
        quantized = measure_perplexity(InMemoryForward(loaded, batch_tokens=seqlen), windows)
        yield text.value, plain, quantized.against(plain)


def _stored(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the checkpoint by name. Of two tied parameters, the first is stored."""
    from compressed_tensors.compressors import pack_to_int32  # noqa: PLC0415 - an extra

    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            packed = pack_to_int32(module.values.cpu(), module.weights.num_bits)
            yield f"{name}.weight_packed", packed.contiguous()
            yield f"{name}.weight_scale", module.scales.data
            yield f"{name}.weight_shape", torch.tensor(module.values.shape)
    for name, parameter in other_parameters(model):
        yield name, parameter.data


def _quantization_config(model: PreTrainedModel) -> dict[str, Any]:
    """The entry of ``config.json``: a group for each number of inputs that share a scale."""
    require_compressed_tensors()
    from compressed_tensors.quantization import (  # noqa: PLC0415 - an extra
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
    )

    by_size: dict[int | None, set[str]] = {}
    inside = re.compile(rf"{re.escape(architecture(model.config).blocks)}\.\d+\.(.*)")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            [place] = inside.fullmatch(name).groups()  # type: ignore[union-attr]  # all are in blocks
            by_size.setdefault(_group_size(module), set()).add(re.escape(place))
    groups = {
        f"group_{number}": QuantizationScheme(
            targets=[rf"re:.*\.(?:{'|'.join(sorted(places))})$"],
            weights=QuantizationArgs(
                num_bits=quantized_layers(model)[0].weights.num_bits,
                strategy="channel" if size is None else "group",
                group_size=size,
                symmetric=True,
            ),
            format=_FORMAT,
        )
        for number, (size, places) in enumerate(by_size.items())
    }
    config = QuantizationConfig(
        config_groups=groups,
        format=_FORMAT,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)],
    )
    fields: dict[str, Any] = config.model_dump(mode="json")
    return fields


def _group_size(module: QuantizedLinear) -> int | None:
    """None if all inputs share the scale of their output."""
    if module.weights is Quantize.INT8:
        return None
    return module.values.shape[1] // module.scales.shape[1]
