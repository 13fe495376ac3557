"""Models whose files have quantized weights, as in GGUF, written as plain ones that can be pruned.

transformers reads them and does the arithmetic. The plain weights are bfloat16, whatever they were
made from.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.extras import require_extra
from pruning.models.gguf_header import check_gguf_header
from pruning.models.gguf_metadata import provenance_in, weight_type
from pruning.models.lineage import Provenance
from pruning.models.load_checks import foreign_code, load_strictly
from pruning.models.safetensors_headers import NotAModel
from pruning.models.towers import auto_class, whole_config
from pruning.process import hide_gguf_bar
from pruning.records import fields_of

if TYPE_CHECKING:
    from gguf import GGUFReader

# Methods whose weights transformers makes plain without a GPU. GPTQ and AWQ are not among them.
METHODS = frozenset({"compressed-tensors", "fp8", "mxfp4"})
_KEYS = ("quantization_config", "compression_config")  # the second by older llm-compressor
GGUF_SUFFIX = ".gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # of a file that llama-gguf-split has divided
_READING = threading.Lock()  # of what ``_read_once`` changes


@dataclass(frozen=True)
class GgufWeights:
    """What is in a GGUF file."""

    kind: str  # the name of its mixture of types, such as ``Q4_K_M``
    plain_bytes: int  # of the same weights in bfloat16
    provenance: Provenance


def quantized_by(path: Path) -> str | None:
    """The method in the config of a directory, if it is one of ``METHODS``."""
    fields = fields_of(path / "config.json")
    scheme = next((fields[key] for key in _KEYS if fields.get(key)), None)
    method = scheme.get("quant_method") if isinstance(scheme, dict) else None
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
        scheme = config.quantization_config
        fields = scheme if isinstance(scheme, dict) else scheme.to_dict()
        config.quantization_config = {**fields, "dequantize": True}
        model = load_strictly(path, auto_class(config), config=config, dtype=torch.bfloat16)
    _save(model, directory)


def _save(model: Any, directory: Path) -> None:  # noqa: ANN401 - transformers has no type for it
    """Without traces of the quantizer, with which ``save_pretrained`` would refuse the model."""
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(directory)


def inspect_gguf(file: Path) -> GgufWeights:
    """Raises ``NotAModel``, and ``ExtraMissing`` without the package ``gguf``."""
    require_extra("gguf", "reading a GGUF file")
    if _PART.search(file.name):
        raise NotAModel(
            f"{file} is one part of a split model: merge the parts with llama-gguf-split --merge"
        )
    with foreign_code(f"{file} cannot be read as a model"):
        check_gguf_header(file)
        reader = _plain_reader()(file)
        num_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        kind, provenance = weight_type(reader), provenance_in(reader)
    if kind is None:
        raise NotAModel(f"{file} contains no weights")
    return GgufWeights(kind, 2 * num_weights, provenance)


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model of a GGUF file and its tokenizer into ``directory``.

    Raises ``NotAModel``, and ``ExtraMissing`` without the package ``gguf``.
    """
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    require_extra("gguf", "reading a GGUF file")
    hide_gguf_bar()
    with foreign_code(f"{file} cannot be read as a model"), _read_once():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            local_files_only=True,
            use_kernels=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    model.config.dtype = torch.bfloat16
    _save(model, directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once, in a sixth of the time.

    It does so three times, for the config, the weights and the tokenizer, and makes the names of
    all tensors anew for each module.
    """
    import gguf  # noqa: PLC0415 - an extra

    with _READING:
        theirs = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
        names = cache(gguf.get_tensor_name_map)
        gguf.__dict__.update(GGUFReader=cache(_plain_reader()), get_tensor_name_map=names)
        try:
            yield
        finally:
            gguf.__dict__.update(theirs)


def _plain_reader() -> "type[GGUFReader]":
    """A reader without ``numpy.memmap``, whose views take three times as long as plain ones."""
    # not from ``gguf``, where ``_read_once`` puts another in its place
    from gguf.gguf_reader import GGUFReader  # noqa: PLC0415 - an extra

    class PlainReader(GGUFReader):
        @property
        def data(self) -> Any:  # noqa: ANN401 - an array
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:  # noqa: ANN401 - an array
            self._data = np.asarray(mapped)

    return PlainReader
