"""Add models from the Hugging Face hub, an object store, a directory or a GGUF file.

Only safetensors, config and tokenizer files and the model card are fetched or copied, none of which
can run code. A GGUF file is converted to them.
"""

import json
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from rich.console import Console
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from app.config import ServeSettings
from app.models.aliases import Aliases
from app.models.hub import HubModel, is_repo_id
from app.models.local import LinkRefused, LocalModel, Modes, modes_of
from app.models.stored import stored_files
from pruning.checkpoints.staging import make_directory, staged, sweep, sync_directory
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig, architecture
from pruning.models.dequantize import (
    GGUF_SUFFIX,
    convert_gguf,
    dequantize,
    inspect_gguf,
    quantized_by,
)
from pruning.models.lineage import CARD_FILE, ORIGIN_FILE, Provenance
from pruning.models.names import is_name
from pruning.models.opening import Openings
from pruning.models.store import (
    COMPANION_FILES,
    NotAModel,
    load,
    parse_config,
    set_up_torch,
)
from pruning.process import DISK_FULL
from pruning.records import parse_record, read_stored
from pruning.store_url import InvalidStoreUrl, StoreUrl, is_store_url

_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack")


class ModelNotAdded(RuntimeError):
    """The model cannot be added. The models directory is unchanged."""


@dataclass(frozen=True)
class Origin:
    """Where a model was added from. Stored beside its weights."""

    source: str
    revision: str | None  # as requested
    commit: str | None  # of the revision at that time; None for a directory
    added_at: float  # seconds since the epoch
    conversion: str | None = None  # how the weights differ from those of the source


class ModelFiles(Protocol):
    """The files of a model on the hub, in an object store or in a directory."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size in bytes of every file, by name."""

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        """Write these files into ``directory``."""


def add_model(
    source: str, settings: ServeSettings, *, name: str | None = None, revision: str | None = None
) -> Path:
    """Add a model from the hub (``org/name``), a store's URL, a directory or a GGUF file.

    Returns its new path.

    The model appears in one step, whole and checked. Raises ``ModelNotAdded``, ``HubError``, and
    for a URL ``StoreError`` or ``CheckpointCorrupt``.
    """
    source = _without_scheme(source)
    target = _target(settings, name or default_name(source))
    files = None if _is_gguf(source) else _files(source, settings, revision)
    modes = files.modes if isinstance(files, LocalModel) else modes_of(Path(source))
    sweep(settings.models_dir)
    openings = Openings(settings.models_dir)
    try:
        with staged(target) as staging:
            staging.chmod(0o700)  # until its files have their modes
            said = Provenance()  # a model card is fetched with the other files
            if files is None:
                conversion, said = _converted(Path(source), revision, staging)
            else:
                _fetch(files, source, staging, openings)
                conversion = _made_plain(staging, source)
            _check(staging, source, openings)
            commit = files.commit if isinstance(files, HubModel) else None
            origin = Origin(source, revision, commit, time.time(), conversion)
            _publish(staging, target, origin, said, modes)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ModelNotAdded(
            f"the disk of {settings.models_dir} is full: free disk space"
        ) from error
    return target


def default_name(source: str) -> str:
    """The name of a model that is added without one. That of a checkpoint has no ``@``."""
    if _is_gguf(source):
        return Path(source).stem
    name = Path(source).resolve().name if Path(source).is_dir() else source.rpartition("/")[2]
    return name.replace("@", "-").replace("+", "-") if is_store_url(source) else name


def ensure_model(repo_id: str, settings: ServeSettings) -> Path:
    """The directory of a model of the hub or of a store, which is added unless it is there.

    Raises as ``add_model``, also if another model has its name.
    """
    repo_id = _without_scheme(repo_id)
    path = settings.models_dir / default_name(repo_id)
    if not path.is_dir():
        return add_model(repo_id, settings)
    try:
        source = parse_record(read_stored(path / ORIGIN_FILE))["source"]
    except (OSError, ValueError, KeyError):
        source = None
    if source != repo_id:
        raise ModelNotAdded(
            f"{path} is not {repo_id}, because it was added from "
            f"{source or 'another source'}: add the model with `sleb models add {repo_id} "
            "--name NAME`, and prune NAME"
        )
    return path


def _target(settings: ServeSettings, name: str) -> Path:
    models_dir = settings.models_dir
    if not is_name(name):
        raise ModelNotAdded(
            f"invalid model name {name!r}: choose a --name of letters, digits, '.', '_' and '-'"
        )
    if name in Aliases(settings.data_dir).all():
        raise ModelNotAdded(f"{name} is an alias: choose another --name, or remove the alias")
    if (models_dir / name).exists():
        raise ModelNotAdded(f"{models_dir / name} already exists: choose another --name")
    return models_dir / name


def _without_scheme(source: str) -> str:
    """``ORG/NAME`` for the URL of a model on the hub."""
    plain = source.removeprefix("hf://")
    return plain if is_repo_id(plain) else source


def _files(source: str, settings: ServeSettings, revision: str | None) -> ModelFiles:
    if Path(source).is_dir():
        return _local(source, settings, revision)
    if not is_store_url(source):
        return _on_hub(source, settings, revision)
    if revision is not None:
        raise ModelNotAdded(f"{source} has no revisions: remove --revision")
    _check_allowed(source, settings)
    try:
        return stored_files(StoreUrl.parse(source))
    except InvalidStoreUrl as error:
        raise ModelNotAdded(f"{source} is not a model URL: it {error}") from error


def _check_allowed(source: str, settings: ServeSettings) -> None:
    allowed = settings.model_sources
    if allowed is not None and not any(fnmatchcase(source, pattern) for pattern in allowed):
        raise ModelNotAdded(
            f"{source} is not an allowed source: SLEB_MODEL_SOURCES allows "
            f"{', '.join(allowed) or 'none'}"
        )


def _local(path: str, settings: ServeSettings, revision: str | None) -> ModelFiles:
    if revision is not None:
        raise ModelNotAdded(f"{path} is a directory, which has no revisions: remove --revision")
    if Path(path).resolve().is_relative_to(settings.models_dir.resolve()):
        raise ModelNotAdded(f"{path} is already in the models directory")
    try:
        return LocalModel(Path(path))
    except LinkRefused as error:
        raise ModelNotAdded(str(error)) from error


def _on_hub(repo_id: str, settings: ServeSettings, revision: str | None) -> ModelFiles:
    if not is_repo_id(repo_id):
        raise ModelNotAdded(
            f"{repo_id!r} not found: expected a directory, a GGUF file, or ORG/NAME of a "
            "model on the hub"
        )
    _check_allowed(repo_id, settings)
    return HubModel(repo_id, revision)


def _fetch(files: ModelFiles, source: str, staging: Path, openings: Openings) -> None:
    """Fetch the small files first, and the weights only if the config is supported."""
    sizes = files.sizes
    small = ("config.json", SAFE_WEIGHTS_INDEX_NAME, CARD_FILE, *COMPANION_FILES)
    if "config.json" not in sizes:
        raise ModelNotAdded(f"{source} is not a transformers model: it has no config.json")
    files.fetch([name for name in small if name in sizes], staging)
    try:
        openings.check(staging)
        config = parse_config(staging)
        if quantized_by(staging) is not None:  # it will not be any more
            config.__dict__.pop("quantization_config", None)
        architecture(config)
    except (NotAModel, UnknownArchitecture, UnsupportedConfig) as error:
        raise _refused(source, staging, error) from error
    weights = _weight_files(sizes, source, staging)
    _check_room(sum(sizes[name] for name in weights), source, staging)
    files.fetch(weights, staging)


def _check_room(needed: int, source: str, staging: Path) -> None:
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise ModelNotAdded(
            f"not enough disk space: {source} needs {needed} bytes, but only {free} are "
            "free on the disk of the models directory; free disk space and try again"
        )


def _weight_files(names: Collection[str], source: str, staging: Path) -> list[str]:
    """One file or the shards of the index, in the order in which transformers looks for them."""
    if SAFE_WEIGHTS_NAME in names:
        return [SAFE_WEIGHTS_NAME]
    if SAFE_WEIGHTS_INDEX_NAME not in names:
        unsafe = sorted(name for name in names if name.endswith(_UNSAFE))
        instead = (
            f", only {', '.join(unsafe[:3])}: convert them to safetensors first" if unsafe else ""
        )
        raise ModelNotAdded(f"{source} has no safetensors weights{instead}")
    try:
        index = json.loads((staging / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
        is_whole = all(name in names and "/" not in name for name in shards)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole or not all(name.endswith(".safetensors") for name in shards):
        raise ModelNotAdded(f"{source}: {SAFE_WEIGHTS_INDEX_NAME} does not list its files")
    return shards


def _is_gguf(source: str) -> bool:
    return source.endswith(GGUF_SUFFIX) and Path(source).is_file()


def _converted(file: Path, revision: str | None, staging: Path) -> tuple[str | None, Provenance]:
    """Convert a GGUF file. Returns what its weights were, and what it says of its model."""
    if revision is not None:
        raise ModelNotAdded(f"{file} is a file, which has no revisions: remove --revision")
    set_up_torch()
    try:
        weights = inspect_gguf(file)
        _check_room(weights.plain_bytes, str(file), staging)
        convert_gguf(file, staging)
        architecture(parse_config(staging))
    except (NotAModel, UnknownArchitecture, UnsupportedConfig) as error:
        raise _refused(str(file), staging, error) from error
    said = f"The weights of {file} are {weights.kind}; converting them to bfloat16."
    Console(stderr=True).print(said, markup=False, soft_wrap=True)
    return f"converted from GGUF ({weights.kind}) to bfloat16", weights.provenance


def _made_plain(staging: Path, source: str) -> str | None:
    """Replace quantized weights by plain ones, and say what they were; None for plain ones."""
    method = quantized_by(staging)
    if method is None:
        return None
    said = f"The weights of {source} are quantized ({method}); converting them to bfloat16."
    Console(stderr=True).print(said, markup=False, soft_wrap=True)
    set_up_torch()
    plain = staging / "plain"
    try:
        dequantize(staging, plain)
    except NotAModel as error:
        raise _refused(source, staging, error) from error
    for file in (*staging.glob("*.safetensors"), staging / SAFE_WEIGHTS_INDEX_NAME):
        file.unlink(missing_ok=True)
    for file in (plain / "config.json", *plain.glob("*.safetensors*")):
        file.replace(staging / file.name)
    shutil.rmtree(plain)
    return f"dequantized from {method} to bfloat16"


def _check(staging: Path, source: str, openings: Openings) -> None:
    """Check the config and the names and shapes of all tensors, without reading weights."""
    set_up_torch()
    try:
        openings.check(staging)
        load(staging, device="meta")
    except NotAModel as error:
        raise _refused(source, staging, error) from error


def _refused(source: str, staging: Path, error: Exception) -> ModelNotAdded:
    return ModelNotAdded(str(error).replace(str(staging), source))


def _publish(staging: Path, target: Path, origin: Origin, said: Provenance, modes: Modes) -> None:
    known = {name: value for name, value in asdict(said).items() if value}
    text = json.dumps({**asdict(origin), **known}, indent=2) + "\n"
    (staging / ORIGIN_FILE).write_text(text, encoding="utf-8")
    for file in staging.iterdir():
        file.chmod(modes.of(file.name))
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    staging.chmod(modes.directory)
    sync_directory(staging)
    make_directory(target.parent)
    try:
        staging.rename(target)
    except OSError as error:
        if not target.exists():
            raise
        raise ModelNotAdded(f"another process just created {target}") from error
    sync_directory(target.parent)
