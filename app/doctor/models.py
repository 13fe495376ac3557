"""The doctor's checks of models and checkpoints, by headers and sizes: no weights are read."""

from collections.abc import Iterator
from pathlib import Path

from app.doctor.finding import Finding, fine, note, wrong
from app.models.external import InvalidExternalModels, read_external_models
from pruning.checkpoints.store import FORMAT, CheckpointCorrupt, read_manifest
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.names import is_name
from pruning.models.store import ModelNotFound, ModelStore, NotAModel
from pruning.plural import counted

_REASONS = (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig, OSError)


def models(models_dir: Path) -> list[Finding]:
    """A finding for each directory."""
    findings = [_model(models_dir, path) for path in _directories(models_dir)]
    if not findings:
        advice = "add one with sleb models add, or run sleb demo"
        return [note("models", f"no models in {models_dir}", advice)]
    return findings


def checkpoints(checkpoints_dir: Path) -> list[Finding]:
    """A finding for each directory. Digests are checked when a checkpoint is loaded."""
    return [_checkpoint(path) for path in _directories(checkpoints_dir)]


def external(file: Path | None) -> Finding:
    """Check the file that declares external models, if there is one."""
    try:
        declared = read_external_models(file)
    except InvalidExternalModels as error:
        return wrong("external models", str(error), "correct the file")
    return fine("external models", f"{len(declared)} declared")


def weights(models_dir: Path) -> dict[str, int]:
    """The size in bytes of the safetensors files of each model."""
    return {
        name: sum(file.stat().st_size for file in (models_dir / name).glob("*.safetensors"))
        for name in ModelStore(models_dir).names()
    }


def _model(models_dir: Path, path: Path) -> Finding:
    check = f"model {path.name}"
    if not is_name(path.name):
        said = f"{path} is not served: the name is not valid"
        return wrong(check, said, "use letters, digits, dots, dashes and underscores only")
    try:
        info = ModelStore(models_dir).inspect(path.name)
    except _REASONS as error:
        return wrong(check, str(error), "add the model again, or delete the directory")
    return fine(check, f"{info.model_type}, {counted(info.num_blocks, 'block')}, {info.dtype}")


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
        return wrong(check, f"{path} has no manifest and is not served", advice)
    except (CheckpointCorrupt, OSError) as error:
        return wrong(check, str(error), advice)
    removed = counted(len(manifest.removed_blocks), "block")
    return fine(check, f"{manifest.parent} without {removed}")


def _directories(root: Path) -> Iterator[Path]:
    """Subdirectories, except hidden ones, which are still being written."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
