"""Models in GGUF files, written as directories that can be pruned.

transformers reads the files and makes quantized weights plain. What is written is bfloat16.
"""

import re
from pathlib import Path

from pruning.extras import require_extra
from pruning.models.safetensors_headers import NotAModel
from pruning.process import hide_gguf_bar

SUFFIX = ".gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # of a file that llama-gguf-split has divided


def convert_gguf(file: Path, directory: Path) -> str:
    """Write the model of a GGUF file and its tokenizer, and return the type of its weights.

    That is the name of the type that most of them have, such as ``Q4_K``. Raises ``NotAModel``, and
    ``ExtraMissing`` without the package ``gguf``.
    """
    require_extra("gguf", "reading a GGUF file")
    if _PART.search(file.name):
        raise NotAModel(f"{file} is a part of a model: merge the parts by llama-gguf-split --merge")
    try:
        kind = _most_frequent_type(file)
        _write(file, directory)
    except MemoryError:
        raise
    except Exception as error:  # readers of other people's files raise anything
        raise NotAModel(f"{file} cannot be read as a model: {error}") from error
    return kind


def _most_frequent_type(file: Path) -> str:
    from gguf import GGUFReader  # noqa: PLC0415 - an extra

    num_bytes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        kind = tensor.tensor_type.name
        num_bytes[kind] = num_bytes.get(kind, 0) + int(tensor.n_bytes)
    if not num_bytes:
        raise ValueError("it has no tensors")
    return max(num_bytes, key=num_bytes.__getitem__)


def _write(file: Path, directory: Path) -> None:
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    hide_gguf_bar()
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, local_files_only=True
    )
    # save_pretrained would refuse a model with traces of the quantizer.
    del model.config.quantization_config
    del model.hf_quantizer
    model.config.dtype = torch.bfloat16
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    tokenizer.save_pretrained(directory)
