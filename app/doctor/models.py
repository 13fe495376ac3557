"""The doctor's looks at models and checkpoints. Headers and sizes only: no weight is read."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from app.doctor.finding import Finding, fine, note, wrong
from app.models.external import InvalidExternalModels, read_external_models
from pruning.checkpoints.store import FORMAT, CheckpointCorrupt, read_manifest
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.safetensors_files import read_header
from pruning.models.store import ModelNotFound, ModelStore, NotAModel, is_name

_REASONS = (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig, OSError)


def models(models_dir: Path) -> list[Finding]:
    """One for each directory that lies there."""
    found = [_model(models_dir, path) for path in _directories(models_dir)]
    if not found:
        advice = "bring one with sleb models add, or run sleb demo"
        return [note("models", f"no models in {models_dir}", advice)]
    return found


def checkpoints(checkpoints_dir: Path) -> list[Finding]:
    """One for each directory that lies there; what its digests say is left to those who load it."""
    return [_checkpoint(path) for path in _directories(checkpoints_dir)]


def external(file: Path | None) -> Finding:
    """The file that declares models of other servers, if there is one."""
    try:
        declared = read_external_models(file)
    except InvalidExternalModels as error:
        return wrong("external models", str(error), "correct the file")
    return fine("external models", f"{len(declared)} declared")


def weights(models_dir: Path) -> dict[str, int]:
    """Bytes of the safetensors of each directory that is called a model."""
    return {
        name: sum(file.stat().st_size for file in (models_dir / name).glob("*.safetensors"))
        for name in ModelStore(models_dir).names()
    }


def check_weights(path: Path) -> None:
    """Raise ``NotAModel`` for safetensors that are cut short, or too long, or not all there."""
    if absent := sorted(name for name in _shards(path) if not (path / name).is_file()):
        raise NotAModel(f"{path}: {', '.join(absent)} of {SAFE_WEIGHTS_INDEX_NAME} is missing")
    for file in sorted(path.glob("*.safetensors")):
        header, begins = read_header(file)
        try:
            ends = [its["data_offsets"][1] for name, its in header.items() if name[:2] != "__"]
            num_bytes = begins + max(ends, default=0)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise NotAModel(f"{file} has a header that says not where its tensors are") from error
        if (found := file.stat().st_size) != num_bytes:
            raise NotAModel(f"{file} has {found} bytes, its header says {num_bytes}")


def _shards(path: Path) -> set[str]:
    """Names of the files that the index names; none where there is no index."""
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return set()
    try:
        return {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAModel(f"{index} is not an index of weights: {error}") from error


def _model(models_dir: Path, path: Path) -> Finding:
    check = f"model {path.name}"
    if not is_name(path.name):
        said = f"{path} is not served: no model can be called so"
        return wrong(check, said, "rename it to letters, digits, dots, dashes and underscores")
    try:
        info = ModelStore(models_dir).inspect(path.name)
        check_weights(path)
    except _REASONS as error:
        return wrong(check, str(error), "put the model there again, or take it away")
    return fine(check, f"{info.model_type}, {info.num_blocks} blocks, {info.dtype}")


def _checkpoint(path: Path) -> Finding:
    check = f"checkpoint {path.name}"
    advice = "prune again, or delete it: DELETE /prune-jobs/ID, or the directory"
    try:
        manifest = read_manifest(path)
        if manifest.format != FORMAT:
            raise CheckpointCorrupt(f"{path}: format {manifest.format}, expected {FORMAT}")
        for name, entry in manifest.files.items():
            if not (path / name).is_file() or (path / name).stat().st_size != entry.num_bytes:
                raise CheckpointCorrupt(f"{path}: {name} is not as it was published")
    except FileNotFoundError:
        return wrong(check, f"{path} has no manifest, so it is not served", advice)
    except (CheckpointCorrupt, OSError) as error:
        return wrong(check, str(error), advice)
    return fine(check, f"{manifest.parent} without {len(manifest.removed_blocks)} blocks")


def _directories(root: Path) -> Iterator[Path]:
    """Those with a name that is not hidden: the others are being written."""
    if root.is_dir():
        yield from sorted(its for its in root.iterdir() if its.is_dir() and its.name[0] != ".")
