"""The headers of safetensors files: sizes, and a fingerprint of a model. Imports no torch."""

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pruning.records import MAX_INTEGER, open_stored, read_stored

# What follows from a header that is not as the format wants it
_WRONG = (RecursionError, ValueError, KeyError, TypeError, AttributeError, struct.error)
_MAX_SHOWN_CHARS = 128
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_BLOCK_NAME = re.compile(r"(?:^|[.:])(?:layers|h)\.(\d+)\.")  # names of blocks in all families
# Names in towers for images, and in what passes their output on
_OTHER_TOWER = re.compile(
    r"(?:^|\.)[a-z_]*(?:vision|visual|vit|audio|projector|connector)[a-z_]*\."
)
_HEADS = ("lm_head.weight", "embed_out.weight")  # in all families
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_EXPERTS = ".experts."
_OUTPUTS_FIRST = ".block_sparse_moe."  # matrices of all experts [experts, outputs, inputs]
# Matrices in blocks that are not rounded: what chooses experts, and biases of all experts
_NOT_ROUNDED = re.compile(r"\.(?:gate|router|router\.layer)\.weight$|_bias$")
_SAMPLE_BYTES = 1024  # of each tensor in the fingerprint
_IGNORED_KEYS = ("_name_or_path", "transformers_version")  # config keys that differ between copies


_INDEX = "model.safetensors.index.json"


class NotAModel(ValueError):
    """The directory exists, but does not contain a model that can be loaded."""


@dataclass(frozen=True)
class WeightSizes:
    """Numbers of stored parameters. Of two tied parameters, one or both may be stored."""

    num_in_blocks: int
    num_elsewhere: int
    num_refit: int = 0  # in the matrices of one block that a repair may fit anew, at most
    num_in_matrices: int = 0  # of those in blocks that are rounded
    num_outputs: int = 0  # of all these matrices
    num_sides: int = 0  # inputs and outputs of linear layers in blocks but those of experts
    num_in_head: int = 0
    num_head_outputs: int = 0
    is_head_stored: bool = False  # else it is the matrix of the embeddings

    def num_parameters(self, num_blocks: int, num_removed: int = 0) -> int:
        """The parameters of a model of ``num_blocks`` equal blocks without ``num_removed``."""
        kept = num_blocks - num_removed
        return self.num_elsewhere + self.num_in_blocks * kept // num_blocks

    def int8_bytes(self, num_blocks: int, itemsize: int, num_removed: int = 0) -> int:
        """The bytes of the same model with int8 matrices in its blocks and an int8 head; others
        take ``itemsize``.

        Each output of a matrix has a scale.
        """
        others = self.num_in_blocks - self.num_in_matrices + self.num_outputs
        in_blocks = self.num_in_matrices + others * itemsize
        kept = num_blocks - num_removed
        plain = self.num_elsewhere - self.is_head_stored * self.num_in_head + self.num_head_outputs
        return self.num_in_head + plain * itemsize + in_blocks * kept // num_blocks


def weight_sizes(path: Path, refit: Collection[str] = ()) -> WeightSizes:
    """Count the parameters in the headers of all files in ``path``, without those of towers for
    images. Raises ``NotAModel``.

    ``refit`` are the layers of a block that a repair may fit anew.
    """
    in_blocks: dict[str, tuple[int, ...]] = {}
    elsewhere: dict[str, tuple[int, ...]] = {}
    for file in path.glob("*.safetensors"):
        for name, shape in shapes_in(file):
            if _OTHER_TOWER.search(name):
                continue
            if _BLOCK_NAME.search(name):
                in_blocks[f"{file.name}:{name}"] = shape
            else:
                elsewhere[f"{file.name}:{name}"] = shape
    matrices = [
        (name, shape)
        for name, shape in in_blocks.items()
        if len(shape) > 1 and not _NOT_ROUNDED.search(name)
    ]
    head, embeddings = _shape_of(elsewhere, _HEADS), _shape_of(elsewhere, _EMBEDDINGS)
    in_head = head or embeddings or (0,)
    return WeightSizes(
        num_in_blocks=sum(map(prod, in_blocks.values())),
        num_elsewhere=sum(map(prod, elsewhere.values())),
        num_refit=_num_refit(in_blocks, tuple(f".{layer}.weight" for layer in refit)),
        num_in_matrices=sum(prod(shape) for _, shape in matrices),
        num_outputs=sum(_num_outputs(name, shape) for name, shape in matrices),
        num_sides=sum(
            sum(shape)
            for name, shape in in_blocks.items()
            if len(shape) == 2 and _EXPERTS not in name  # in memory they are one tensor
        ),
        num_in_head=prod(in_head),
        num_head_outputs=in_head[0],
        is_head_stored=head is not None,
    )


def _num_outputs(name: str, shape: tuple[int, ...]) -> int:
    """Of a matrix, or of those of all experts ``[experts, inputs, outputs]``."""
    if len(shape) == 2:
        return shape[0]
    return shape[0] * (shape[1] if _OUTPUTS_FIRST in name else shape[2])


def _num_refit(in_blocks: Mapping[str, tuple[int, ...]], endings: tuple[str, ...]) -> int:
    """The parameters of these names in the block that has most of them."""
    sizes: Counter[str] = Counter()
    for name, shape in in_blocks.items():
        if name.endswith(endings) and (block := _BLOCK_NAME.search(name)):
            sizes[block[1]] += prod(shape)
    return max(sizes.values(), default=0)


def check_weights(path: Path) -> None:
    """Raise ``NotAModel`` if safetensors files are missing, truncated or too long."""
    if absent := sorted(name for name in _shards(path) if not (path / name).is_file()):
        raise NotAModel(f"{path}: missing files of {_INDEX}: {', '.join(absent)}")
    for file in sorted(path.glob("*.safetensors")):
        header, begins = read_header(file)
        ends = [tensor["data_offsets"][1] for tensor in _tensors(header).values()]
        num_bytes = begins + max(ends, default=0)
        if (actual := file.stat().st_size) != num_bytes:
            raise NotAModel(f"{file} has {actual} bytes, but its header says {num_bytes}")


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of its tensors. Raises ``NotAModel``."""
    try:
        with open_stored(file) as opened:
            (num_bytes,) = struct.unpack("<Q", opened.read(8))
            if num_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {num_bytes} bytes")
            header: dict[str, Any] = json.loads(opened.read(num_bytes))
        for name, tensor in _tensors(header).items():
            _check_tensor(name, tensor)
    except PermissionError as error:
        raise NotAModel(
            f"cannot read {file} ({error.strerror}): give the user of the service read permission"
        ) from error
    except (OSError, *_WRONG) as error:
        raise NotAModel(
            f"{file} is not a safetensors file ({error}): download or save the model again"
        ) from error
    return header, 8 + num_bytes


def _tensors(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _check_tensor(name: str, tensor: Mapping[str, Any]) -> None:
    """Raises ``ValueError``, or what follows from other types than those of the format."""
    begin, end = tensor["data_offsets"]
    sizes = [begin, end, *tensor["shape"]]
    are_sizes = all(type(size) is int and 0 <= size <= MAX_INTEGER for size in sizes)
    if not are_sizes or begin > end:
        raise ValueError(f"{name[:_MAX_SHOWN_CHARS]!r} has no shape or no offsets")


def fingerprint(path: Path) -> str:
    """A SHA-256 over the config, headers and sizes of all files, and a sample of every tensor.

    It differs between training runs, as these change every tensor, but may miss a single edited
    number. Raises ``OSError`` or ``NotAModel``.
    """
    file = path / "config.json"
    try:
        config = json.loads(read_stored(file))
        hashed = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    except _WRONG as error:
        raise NotAModel(f"{file} is not a config: {error}") from error
    for file in sorted(path.glob("*.safetensors")):
        _add_file(digest, file)
    return digest.hexdigest()


def _shards(path: Path) -> set[str]:
    """The file names in the index; none without an index."""
    index = path / _INDEX
    if not index.is_file():
        return set()
    try:
        content = read_stored(index, _MAX_HEADER_BYTES)
        return {str(name) for name in json.loads(content)["weight_map"].values()}
    except OSError as error:
        raise NotAModel(f"cannot read {index}: {error.strerror}") from error
    except _WRONG as error:
        raise NotAModel(f"{index} is not a safetensors index: {error}") from error


def _shape_of(
    shapes: Mapping[str, tuple[int, ...]], endings: tuple[str, ...]
) -> tuple[int, ...] | None:
    return next((shape for name, shape in shapes.items() if name.endswith(endings)), None)


def shapes_in(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors in a safetensors file. Raises ``NotAModel``."""
    header, _ = read_header(file)
    for name, tensor in _tensors(header).items():
        yield name, tuple(tensor["shape"])


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    header, begin = read_header(file)
    digest.update(json.dumps([file.name, file.stat().st_size, header], sort_keys=True).encode())
    offsets = [tensor["data_offsets"] for tensor in _tensors(header).values()]
    with open_stored(file) as opened:
        for first, end in sorted(offsets):
            opened.seek(begin + first)
            digest.update(opened.read(min(_SAMPLE_BYTES, end - first)))
