"""Whether two directories hold the same model, told without reading all of its weights."""

import hashlib
import json
from pathlib import Path

from pruning.models.weight_sizes import read_header

_SAMPLE_BYTES = 1024  # of the beginning of every tensor
_SAYS_NOTHING = ("_name_or_path", "transformers_version")  # of the config, but who saved it


def fingerprint(path: Path) -> str:
    """Over the config, the headers and sizes of all safetensors, and a sample of every tensor.

    Another training run changes every tensor, and so the sample of each; one number that was
    edited by hand may go unnoticed. Raises ``OSError``, ``ValueError`` or ``NotAModel``.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in config.items() if key not in _SAYS_NOTHING}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for file in sorted(path.glob("*.safetensors")):
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    header, begin = read_header(file)
    digest.update(json.dumps([file.name, file.stat().st_size, header], sort_keys=True).encode())
    offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    with file.open("rb") as opened:
        for first, end in sorted(offsets):
            opened.seek(begin + first)
            digest.update(opened.read(min(_SAMPLE_BYTES, end - first)))
