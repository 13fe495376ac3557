"""Models whose files have quantized weights, written as plain ones that can be pruned.

transformers does the arithmetic. The plain weights are bfloat16, whatever they were made from.
"""

import json
from pathlib import Path
from typing import Any

from pruning.extras import require_extra
from pruning.models.load_checks import foreign_code, load_strictly
from pruning.models.towers import auto_class, whole_config

# Methods whose weights transformers makes plain without a GPU. GPTQ and AWQ are not among them.
METHODS = frozenset({"compressed-tensors", "fp8", "mxfp4"})
_KEYS = ("quantization_config", "compression_config")  # the second by older llm-compressor


def quantized_by(path: Path) -> str | None:
    """The method in the config of a directory, if it is one of ``METHODS``."""
    try:
        fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
        scheme: Any = next((fields[key] for key in _KEYS if fields.get(key)), {})
        method = scheme.get("quant_method")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return method if isinstance(method, str) and method in METHODS else None


def dequantize(path: Path, directory: Path) -> None:
    """Write the model in ``path`` with plain weights into ``directory``, without its tokenizer.

    Raises ``NotAModel``, and ``ExtraMissing`` for compressed-tensors without that package.
    """
    import torch  # noqa: PLC0415 - takes seconds

    if quantized_by(path) == "compressed-tensors":
        require_extra("quantize", "reading compressed-tensors")
    with foreign_code(f"{path} cannot be dequantized"):
        config = whole_config(path)
        config.quantization_config = {**_fields(config.quantization_config), "dequantize": True}
        model = load_strictly(path, auto_class(config), config=config, dtype=torch.bfloat16)
    _save(model, directory)


def _fields(scheme: Any) -> dict[str, Any]:  # noqa: ANN401 - a dict or a class of transformers
    fields: dict[str, Any] = scheme if isinstance(scheme, dict) else scheme.to_dict()
    return fields


def _save(model: Any, directory: Path) -> None:  # noqa: ANN401 - transformers has no type for it
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(directory)
