"""What a GGUF file says of its model: the type of its weights, its licence, and its origin.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md lists the keys.
"""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pruning.models.lineage import Provenance

if TYPE_CHECKING:
    from gguf import GGUFReader

_HUB_URL = re.compile(r"https://huggingface\.co/(?:datasets/)?([\w.-]+/[\w.-]+)/?", re.ASCII)
_MAX_MODELS = 100  # that a file names as merged


def weight_type(reader: "GGUFReader") -> str | None:
    """The name of its mixture of types, such as ``Q4_K_M``; without one, the type of most bytes.

    None for a file without weights.
    """
    from gguf import LlamaFileType  # noqa: PLC0415 - an extra

    num_bytes: Counter[str] = Counter()
    for tensor in reader.tensors:
        num_bytes[tensor.tensor_type.name] += int(tensor.n_bytes)
    if not num_bytes:
        return None
    number = _value(reader, "general.file_type")
    if isinstance(number, int) and number in {each.value for each in LlamaFileType}:
        file_type = LlamaFileType(number)
        if file_type is not LlamaFileType.GUESSED:
            return file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return num_bytes.most_common(1)[0][0]


def provenance_in(reader: "GGUFReader") -> Provenance:
    """What the file says. Its own repository on the hub goes before its base models."""
    own = [_on_hub(reader, f"general.{key}") for key in ("source.repo_url", "source.url")]
    own += [_value(reader, "general.source.huggingface.repository")]
    repositories = [name for name in own if name][:1] or _listed(reader, "general.base_model")
    licence = _value(reader, "general.license")
    return Provenance.of(
        {
            "licence": licence.lower() if isinstance(licence, str) else None,
            "licence_name": _value(reader, "general.license.name"),
            "licence_link": _value(reader, "general.license.link"),
            "name": _value(reader, "general.name"),
            "base_models": repositories,
            "languages": _value(reader, "general.languages"),
            "datasets": _listed(reader, "general.dataset") or _value(reader, "general.datasets"),
        }
    )


def _listed(reader: "GGUFReader", key: str) -> list[str]:
    """The repositories on the hub of a list of models or data sets."""
    count = _value(reader, f"{key}.count")
    numbers = range(min(count, _MAX_MODELS)) if isinstance(count, int) else ()
    names = (_on_hub(reader, f"{key}.{number}.repo_url") for number in numbers)
    return [name for name in names if name]


def _on_hub(reader: "GGUFReader", key: str) -> str | None:
    """``ORG/NAME`` of a URL of the hub."""
    url = _value(reader, key)
    match = _HUB_URL.fullmatch(url) if isinstance(url, str) else None
    return match[1] if match else None


def _value(reader: "GGUFReader", key: str) -> Any:  # noqa: ANN401 - of any type
    field = reader.get_field(key)
    return None if field is None else field.contents()
