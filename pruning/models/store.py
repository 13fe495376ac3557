"""Dense models on disk: find them by name, inspect their configs, and load them strictly.

Reads safetensors only and never runs remote code. Refuses a model whose config and weights
disagree, as transformers would fill missing blocks with random numbers and only log it.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pruning.cpus import usable_cpus
from pruning.models.architectures import (
    ARCHITECTURES,
    UnknownArchitecture,
    UnsupportedConfig,
    architecture,
    unknown_architecture,
)
from pruning.models.companions import COMPANION_FILES as COMPANION_FILES  # noqa: PLC0414 - for importers
from pruning.models.config_bounds import MAX_NUMBER, check_config, check_sizes
from pruning.models.inspection_record import InspectionRecord, Stamp
from pruning.models.load_checks import (
    check_size,
    foreign_code,
    load_strictly,
    refuse_wrong_buffers,
)
from pruning.models.names import is_name
from pruning.models.nvidia_driver import warn_of_old_driver
from pruning.models.opening import Openings
from pruning.models.safetensors_headers import NotAModel as NotAModel  # noqa: PLC0414 - for importers
from pruning.models.safetensors_headers import check_weights
from pruning.models.stored_buffers import as_parameters
from pruning.models.towers import auto_class, language_config, language_model, whole_config
from pruning.plural import counted
from pruning.records import InvalidRecord, check_record, fields_of

if TYPE_CHECKING:  # both take seconds to import
    from torch.nn import Parameter
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # a tokenizer has one of them
# Bytes of a number, by the torch name of its type.
DTYPE_BYTES = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8})


class UnusableDevice(ValueError):
    """This machine does not have the device that the settings name."""


class ModelNotFound(LookupError):
    """The store has no model of this name."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts from the config and the sizes of the files, without reading weights."""

    name: str
    path: Path
    model_type: str
    num_blocks: int
    max_positions: int | None
    vocab_size: int
    hidden_size: int
    dtype: str
    weight_bytes: int


@dataclass(frozen=True)
class LoadedModel:
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    path: Path

    def parameters(self) -> "Iterator[Parameter]":
        """All that it keeps in memory."""
        return self.model.parameters()


class ModelStore:
    """Directories with ``config.json`` and safetensors, one per model, under one root."""

    def __init__(self, root: Path, *, allow_paths: bool = False) -> None:
        self._root = root
        self._allow_paths = allow_paths
        self._inspected: dict[str, tuple[Stamp, ModelInfo]] = {}
        self._record = InspectionRecord(root)
        self._openings, self._elsewhere = Openings(root), Openings()

    def names(self) -> list[str]:
        try:
            configs = list(self._root.glob("*/config.json"))
        except OSError:  # it may not be read
            return []
        return sorted(path.parent.name for path in configs if is_name(path.parent.name))

    def path(self, name: str) -> Path:
        """The directory of the model. Raises ``ModelNotFound``."""
        with suppress(PermissionError):
            if is_name(name) and (path := self._root / name).is_dir():
                return path
        if self._allow_paths and Path(name).is_dir():
            return Path(name)
        known = ", ".join(self.names()) or "none yet"
        raise ModelNotFound(f"no model named {name[:128]!r}; existing models: {known}")

    def inspect(self, name: str) -> ModelInfo:
        """Read the config, unless the files are unchanged since the last call.

        Raises ``ModelNotFound``, ``NotAModel``, or what ``architectures.architecture`` raises.
        """
        path = self.path(name)
        try:
            stamp = stamp_of(path)
            known = self._inspected.get(name)
            if known is None or known[0] != stamp:
                known = self._inspected[name] = (stamp, self._info(name, path, stamp))
        except OSError as error:
            raise NotAModel(f"cannot read {path}: {error.strerror}") from error
        return known[1]

    def _info(self, name: str, path: Path, stamp: Stamp) -> ModelInfo:
        """From the record, which needs no transformers, else from the config."""
        if path != self._root / name:  # given as a path
            self.check_opened(path)
            return _info(name, path)
        if (fields := self._record.read(name, stamp)) is not None:
            with suppress(TypeError, InvalidRecord):  # of a checkout of the same version, or broken
                return _checked(ModelInfo(path=path, **fields), name)
        self.check_opened(path)
        info = _info(name, path)
        fields = {key: value for key, value in asdict(info).items() if key != "path"}
        self._record.write(name, stamp, fields)
        return info

    def load(self, name: str, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
        path = self.path(name)
        self.check_opened(path)
        return load(path, dtype=dtype, device=device)

    def check_opened(self, path: Path) -> None:
        """Open the model in a process with limits, unless that was done. Raises ``NotAModel``."""
        own = path.parent == self._root
        (self._openings if own else self._elsewhere).check(path)


def _checked(info: ModelInfo, name: str) -> ModelInfo:
    """The information of a record. Raises ``InvalidRecord``."""
    check_record(info)
    is_plausible = 0 < info.num_blocks < 2**31 and info.weight_bytes >= 0
    is_known = info.model_type in ARCHITECTURES and info.dtype in DTYPE_BYTES
    if info.name != name or not is_known or not is_plausible:
        raise InvalidRecord(f"it does not describe {name}")
    return info


def stamp_of(path: Path) -> Stamp:
    """A stamp of the existing files that ``inspect`` looks at. It changes when one of them does."""
    others = (path / name for name in _VOCABULARIES)
    files = [path / "config.json", *others, *sorted(path.glob("*.safetensors"))]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _info(name: str, path: Path) -> ModelInfo:
    config = usable_config(path)
    check_weights(path)
    if not any((path / name).is_file() for name in _VOCABULARIES):
        raise NotAModel(
            f"{path} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the tokenizer "
            "files next to the weights"
        )
    return ModelInfo(
        name=name,
        path=path,
        model_type=config.model_type,
        num_blocks=config.num_hidden_layers,
        max_positions=getattr(config, "max_position_embeddings", None),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        dtype=dtype_name(config),
        weight_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
    )


def _refuse_special_files(path: Path) -> None:
    """Raise ``NotAModel`` for a folder with a pipe, a socket or a device: reading it may hang."""
    for file in path.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise NotAModel(f"{file} is neither a file nor a directory: remove it")


def usable_config(path: Path) -> "PreTrainedConfig":
    """The config of a supported model, whose values make sense. Raises as ``inspect`` does."""
    config = read_config(path)
    refused = UnknownArchitecture, UnsupportedConfig
    with foreign_code(f"{path}/config.json is invalid", *refused):
        architecture(config)
        _check_values(path, config)
    return config


def _check_values(path: Path, config: "PreTrainedConfig") -> None:
    """Raise ``NotAModel`` for a value with which no model can be made or run."""
    for field in ("num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"):
        value = getattr(config, field, None)
        is_optional = value is None and field == "max_position_embeddings"
        if not is_optional and not (type(value) is int and 0 < value <= MAX_NUMBER):
            raise NotAModel(
                f"{path}/config.json: {field}={value!r}: expected a number from 1 to 2**31 - 1"
            )
    if (dtype := dtype_name(config)) not in DTYPE_BYTES:
        raise NotAModel(f"{path}/config.json: dtype={dtype}: expected {', '.join(DTYPE_BYTES)}")


def dtype_name(config: "PreTrainedConfig") -> str:
    """The torch name of the type of the weights."""
    return str(config.dtype or "float32").removeprefix("torch.")


def read_config(path: Path) -> "PreTrainedConfig":
    """The config of a directory with config and weights. Raises what ``parse_config`` raises."""
    if not (path / "config.json").is_file():
        raise NotAModel(f"{path} is not a model: it has no config.json")
    _refuse_special_files(path)
    if not any(path.glob("*.safetensors")):
        raise NotAModel(
            f"{path} has no .safetensors file: convert its weights to safetensors first"
        )
    return parse_config(path)


def parse_config(path: Path) -> "PreTrainedConfig":
    """The config of a directory that may have no weights; that of its language tower.

    Raises ``NotAModel``, or ``UnknownArchitecture`` for a type that transformers does not know.
    """
    try:
        check_config(path / "config.json")
        check_sizes(path)
    except (InvalidRecord, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise NotAModel(f"cannot read {path}/config.json: {said}") from error
    try:
        return language_config(whole_config(path))
    except Exception as error:  # the code of a config runs on whatever the file holds
        needs_code = "trust_remote_code" in str(error)
        if not needs_code and (fields := _fields_without_row(path)) is not None:
            raise unknown_architecture(fields["model_type"], fields) from error
        reason = "the model requires custom code, which is never executed" if needs_code else error
        raise NotAModel(f"cannot read {path}/config.json: {reason}") from error


def _fields_without_row(path: Path) -> dict[str, Any] | None:
    """The fields of the config, if its ``model_type`` is a text and not a supported type."""
    fields = fields_of(path / "config.json")
    model_type = fields.get("model_type")
    is_unknown = isinstance(model_type, str) and model_type not in ARCHITECTURES
    return fields if is_unknown else None


def load(path: Path, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Load the model in evaluation mode, and its tokenizer. Of a model with a tower for images,
    that is the language tower.

    ``dtype`` is a torch name or "auto" (that of the checkpoint), and ``device`` a torch device or
    "auto". On "meta" no weights are read, but keys are checked. Raises ``UnusableDevice``, or
    ``NotAModel`` if a key is missing, unexpected or of the wrong shape.
    """
    device = pick_device(device)
    model: Any = language_model(load_whole(path, dtype=dtype, on_meta=device == "meta"))
    refuse_wrong_buffers(path, model)
    tokenizer = load_tokenizer(path)
    return LoadedModel(model.to(device).eval(), tokenizer, path)


def load_whole(path: Path, *, dtype: str = "auto", on_meta: bool = False) -> "PreTrainedModel":
    """All of the model in main memory, or without weights, as a user would load it.

    Raises ``NotAModel`` as ``load`` does.
    """
    import torch  # noqa: PLC0415 - takes seconds

    usable_config(path)
    with foreign_code(f"cannot load {path}", torch.AcceleratorError):
        config = whole_config(path)
        check_size(path, config)
        model = load_strictly(
            path,
            auto_class(config),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            ignore_mismatched_sizes=True,  # refused with the names of the keys
            device_map="meta" if on_meta else None,
        )
    as_parameters(model)
    whole: PreTrainedModel = model.eval()
    return whole


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model in that directory. Raises ``NotAModel``."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds

    with foreign_code(f"cannot load the tokenizer of {path}"):
        loaded: Any = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
        loaded.decode(loaded("a")["input_ids"])  # some of what its files hold shows only in use
    tokenizer: PreTrainedTokenizerBase = loaded
    return tokenizer


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the files byte by byte, as saving a tokenizer again may change it."""
    for name in COMPANION_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def pick_device(device: str) -> str:
    """The torch device that a value of ``SLEB_DEVICE`` means. Raises ``UnusableDevice``."""
    import torch  # noqa: PLC0415 - takes seconds

    num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        if not num_usable:
            warn_of_old_driver(torch.version.cuda)
        return "cuda" if num_usable else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= num_usable:
        raise UnusableDevice(
            f"SLEB_DEVICE={device}, but torch sees {counted(num_usable, 'GPU')}: set it to auto, "
            "cpu or an available GPU; run `sleb doctor` for details"
        )
    return device


def set_up_torch(threads: int | None = None) -> None:
    """Set the number of CPU threads, and silence transformers. Call once, at the start.

    By default, there is a thread for each CPU that this process may use, or as many as
    ``OMP_NUM_THREADS`` says if that is fewer.
    """
    import torch  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cpus()))


def num_parameters(model: "PreTrainedModel") -> int:
    """Number of distinct parameters; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())
