"""Models in GGUF files, written as directories that can be pruned.

transformers reads the files and makes quantized weights plain. What is written is bfloat16.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pruning.extras import require_extra
from pruning.models.load_checks import foreign_code
from pruning.models.safetensors_headers import NotAModel
from pruning.process import hide_gguf_bar

SUFFIX = ".gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # of a file that llama-gguf-split has divided


@dataclass(frozen=True)
class GgufWeights:
    """What is in a GGUF file."""

    kind: str  # the type that most of its bytes have, such as ``Q4_K``
    plain_bytes: int  # of the same weights in bfloat16


def inspect_gguf(file: Path) -> GgufWeights:
    """Raises ``NotAModel``, and ``ExtraMissing`` without the package ``gguf``."""
    require_extra("gguf", "reading a GGUF file")
    from gguf import GGUFReader  # noqa: PLC0415 - an extra

    if _PART.search(file.name):
        raise NotAModel(f"{file} is a part of a model: merge the parts by llama-gguf-split --merge")
    num_bytes: Counter[str] = Counter()
    num_weights = 0
    with foreign_code(f"{file} cannot be read as a model"):
        for tensor in GGUFReader(file).tensors:
            num_bytes[tensor.tensor_type.name] += int(tensor.n_bytes)
            num_weights += int(tensor.n_elements)
    if not num_bytes:
        raise NotAModel(f"{file} has no weights")
    return GgufWeights(num_bytes.most_common(1)[0][0], 2 * num_weights)


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model of a GGUF file and its tokenizer into ``directory``.

    Raises ``NotAModel``, and ``ExtraMissing`` without the package ``gguf``.
    """
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    require_extra("gguf", "reading a GGUF file")
    hide_gguf_bar()
    with foreign_code(f"{file} cannot be read as a model"):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    # save_pretrained would refuse a model with traces of the quantizer.
    del model.config.quantization_config
    del model.hf_quantizer
    model.config.dtype = torch.bfloat16
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
