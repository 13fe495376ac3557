"""The doctor's checks of models and checkpoints, by configs, headers and sizes, without weights."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from app.doctor.finding import Finding, fine, note, wrong
from app.engine.attention import UnsupportedAttention, attention_windows
from app.engine.running.flat_model import flat_model
from app.models.external import InvalidExternalModels, read_external_models
from pruning.checkpoints.store import FORMAT, CheckpointCorrupt, read_manifest
from pruning.models.architectures import (
    UnknownArchitecture,
    UnsupportedConfig,
    architecture,
    engine_refusal,
)
from pruning.models.names import is_name
from pruning.models.store import ModelNotFound, ModelStore, NotAModel, parse_config
from pruning.models.towers import tower_type
from pruning.plural import counted
from pruning.repair.order import limit, refusal

_REASONS = (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig, OSError)


def models(models_dir: Path) -> list[Finding]:
    """A finding for each directory."""
    findings = [_model(models_dir, path) for path in _directories(models_dir)]
    if not findings:
        advice = "add a model with `sleb models add`, or run `sleb demo`"
        return [note("models", f"no models in {models_dir}", advice)]
    return findings


def family(path: Path) -> list[Finding]:
    """Findings about the model in this directory, by its config: no weights are read."""
    try:
        config = parse_config(path)
        architecture(config)
    except NotAModel as error:
        return [wrong("family", str(error), "give a directory that contains a model's config.json")]
    except (UnknownArchitecture, UnsupportedConfig) as error:
        advice = (
            "see docs/families.md for supported families, and docs/unsupported-families.md "
            "for the others"
        )
        return [wrong("family", str(error), advice)]
    blocks = counted(config.num_hidden_layers, "block")
    whole = tower_type(path)
    said = f"{config.model_type} is supported; the model has {blocks}"
    if whole is not None:
        said = (
            f"{whole} is supported: its language model, a {config.model_type} with "
            f"{blocks}, is pruned and served; other parts are written unchanged"
        )
    return [
        fine("family", said),
        _served(config),
        _repairs(config),
    ]


def _served(config: PreTrainedConfig) -> Finding:
    refusal = engine_refusal(config.model_type)
    try:
        attention_windows(config)
    except UnsupportedAttention as error:
        refusal = refusal or str(error)
    if refusal is not None:
        return note(
            "served", f"not by the built-in engine: {refusal}", "serve the checkpoint with vLLM"
        )
    with torch.device("meta"):  # modules without values
        model = AutoModelForCausalLM.from_config(config).eval()
        is_flat = flat_model(model) is not None
    how = "runs the blocks itself" if is_flat else "calls the model's own forward"
    return fine("served", f"by the built-in engine, which {how}")


def _repairs(config: PreTrainedConfig) -> Finding:
    if (against := refusal(config)) is not None:
        return note("repair", against, "prune fewer blocks, or heal the checkpoint")
    left = limit(config)
    return fine("repair", f"ridge is available; {left}" if left else "ridge is available")


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
        said = f"{path} is not served: invalid model name"
        return wrong(check, said, "use only letters, digits, dots, dashes and underscores")
    try:
        info = ModelStore(models_dir).inspect(path.name)
    except _REASONS as error:
        return wrong(check, str(error), "add the model again, or delete its directory")
    return fine(check, f"{info.model_type}, {counted(info.num_blocks, 'block')}, {info.dtype}")


def _checkpoint(path: Path) -> Finding:
    check = f"checkpoint {path.name}"
    advice = (
        "prune the model again, or delete the checkpoint with DELETE /prune-jobs/ID or "
        "by removing its directory"
    )
    try:
        manifest = read_manifest(path)
        if manifest.format != FORMAT:
            raise CheckpointCorrupt(
                f"{path}: unsupported format {manifest.format}, expected {FORMAT}"
            )
        for name, entry in manifest.files.items():
            if not (path / name).is_file() or (path / name).stat().st_size != entry.num_bytes:
                raise CheckpointCorrupt(f"{path}: {name} changed after it was published")
    except FileNotFoundError:
        return wrong(check, f"{path} has no manifest, so it is not served", advice)
    except (CheckpointCorrupt, OSError) as error:
        return wrong(check, str(error), advice)
    removed = counted(len(manifest.removed_blocks), "block")
    return fine(check, f"{manifest.parent} without {removed}")


def _directories(root: Path) -> Iterator[Path]:
    """Subdirectories, except hidden ones, which are still being written."""
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
