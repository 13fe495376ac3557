"""Settings from the environment and from secret files; only ``environment`` reads some, too.

``Settings`` are those of every process, and ``WorkerSettings`` add those of a search.
"""

import json
import os
import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, ByteSize, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from pruning.logs import LogFormat
from pruning.store_url import StoreUrl


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def _store_url(text: str) -> str:
    """Check the URL. The error does not contain it, as it may have a password."""
    try:
        parts = urlsplit(text)
        is_valid = parts.port != 0 and text.startswith(("redis://", "rediss://", "unix://"))
    except ValueError:
        is_valid = False
    if not is_valid or (parts.scheme == "unix" and not parts.path):
        raise ValueError("expected redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
    return text


def _object_store_url(text: str) -> str:
    return str(StoreUrl.parse(text))


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)


def _device(text: str) -> str:
    if _DEVICE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not supported: set it to auto, cpu, cuda or cuda:NUMBER")
    return text


class Verify(StrEnum):
    """Where a checkpoint is loaded and compared before it becomes visible."""

    PROCESS = "process"  # in a new process, as a user would load it
    INLINE = "inline"  # in the process that wrote it: faster, but its state can hide a defect
    OFF = "off"


class UnreadableSecrets(ValueError):
    """``SLEB_SECRETS_DIR`` or a file in it cannot be read."""


class Settings(BaseSettings):
    """Each field is read from ``SLEB_<NAME>``, or else from the file of that name in
    ``secrets_dir``.

    An empty variable counts as unset. Descriptions are Markdown, for the table of all settings.
    """

    model_config = SettingsConfigDict(
        env_prefix="SLEB_",
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,  # the input may be a secret
    )

    data_dir: AbsolutePath = Field(
        default_factory=lambda: platformdirs.user_data_path("sleb-serve"),
        description="directory for models, checkpoints, texts and the embedded Valkey",
    )
    redis_url: Annotated[str, AfterValidator(_store_url)] | None = Field(
        default=None,
        repr=False,  # may carry a password
        description="`redis://`, `rediss://` or `unix://` URL; unset starts the embedded Valkey",
    )
    secrets_dir: AbsolutePath | None = Field(
        default=None,
        description="folder with one file per secret setting, named like its variable "
        "(`sleb_redis_url`); variables take precedence",
    )
    host: IPv4Address | IPv6Address | Literal["localhost"] = Field(
        default=IPv4Address("127.0.0.1"),
        description="address that the API and a worker's metrics listen on",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`"
    )
    log_format: LogFormat = Field(
        default="text",
        description="`text`, or `json` for one object per line, with the ID of the request or job",
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        default="auto",
        description="`cpu`, `cuda`, `cuda:1`, ...; `auto` uses CUDA if it is available",
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of torch in each process; unset uses all CPUs available to the "
        "process",
    )
    tune: str = Field(
        default="on",
        description="`on` times equivalent kernels on this CPU when a model is first served, and "
        "keeps the choices and compiled code in the data directory; `off` skips timing "
        "and compilation; or the path of a file for the choices",
    )
    sandbox: Literal["process", "off"] = Field(
        default="process",
        description="`process` opens a model for the first time, and renders its chat template, in "
        "processes with limits of time and memory; `off` does so in the process that serves it",
    )

    task_data_dir: AbsolutePath | None = Field(
        default=None,
        description="folder with questions of zero-shot tasks as `TASK.jsonl`, which jobs and "
        "`POST /evals` can name",
    )
    checkpoint_store: Annotated[str, AfterValidator(_object_store_url)] | None = Field(
        default=None,
        description="object store for published checkpoints: `s3://BUCKET/PREFIX`, "
        "`gs://BUCKET/PREFIX`, `hf://ORG/NAME` or `file:///FOLDER`; unset keeps them "
        "only on the local disk. The first two need the extras `s3` and `gcs`",
    )
    store_cache_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(50 * 2**30),
        description="maximum size of the files downloaded from the object store, in bytes or as "
        "`50GiB`; the least recently used are removed",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced below
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        directory = _secrets_dir()
        if directory is None:
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, directory)

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "checkpoints"

    @property
    def store_cache_dir(self) -> Path:
        return self.data_dir / "store-cache"

    @property
    def valkey_dir(self) -> Path:
        return self.data_dir / "valkey"


class WorkerSettings(Settings):
    """A process that prunes: a worker, or a command that needs no server."""

    state_budget: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="memory for the hidden states of a search, in bytes or e.g. `4GiB`; unset uses "
        "half of the free memory",
    )
    num_actors: NonNegativeInt = Field(
        default=0,
        description="Ray actors that share a search; 0 runs it in the process of the job",
    )
    verify: Verify = Field(
        default=Verify.PROCESS,
        description="where a checkpoint is loaded and compared before publication: in a new "
        "`process`, `inline` in the process that wrote it, or not at all (`off`)",
    )
    tasks_dir: AbsolutePath | None = Field(
        default=None,
        description="folder with lm-eval tasks that replace the built-in ones in jobs and `sleb "
        "eval`; their code is executed",
    )
    worker_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port of a worker's `/metrics`; 0 disables it"
    )
    mlflow_uri: str | None = Field(
        default=None,
        description="MLflow server, such as `http://HOST:5000`, that records a run for each "
        "succeeded job; unset records none; needs the extra `mlflow`",
    )
    mlflow_experiment: str = Field(
        default="sleb-serve",
        description="name of the MLflow experiment, created if it does not exist",
    )
    cancel_s: NonNegativeFloat = Field(
        default=30.0,
        description="seconds for a job to cancel or pause before its process is killed",
    )


def set_variables() -> dict[str, str]:
    """The environment variables of this process that are not empty, by name in upper case."""
    return {name.upper(): value for name, value in os.environ.items() if value}


def secret_files() -> dict[str, Path]:
    """The files of ``SLEB_SECRETS_DIR``, by name in upper case.

    Raises ``UnreadableSecrets``.
    """
    directory = _secrets_dir()
    paths = directory.iterdir() if directory else ()
    return {path.name.upper(): path for path in paths if path.is_file()}


def _secrets_dir() -> Path | None:
    folder = set_variables().get("SLEB_SECRETS_DIR")
    if folder is None:
        return None
    directory = _absolute(Path(folder))
    try:
        unreadable = [
            path for path in directory.iterdir() if path.is_file() and not os.access(path, os.R_OK)
        ]
    except OSError as error:
        raise UnreadableSecrets(
            f"cannot read SLEB_SECRETS_DIR={folder} ({error.strerror}): correct or unset "
            "the variable"
        ) from error
    if unreadable:
        raise UnreadableSecrets(
            f"cannot read {unreadable[0]}: give the user of this process read permission"
        )
    return directory


def child_environment(settings: Settings, redis_url: str | None = None) -> dict[str, str]:
    """The environment of a child process that has the same settings and the same job store.

    A setting that is unset here is unset there, whatever the environment of this process says.
    """
    fields = settings.model_dump(mode="json")
    if redis_url is not None:
        fields["redis_url"] = redis_url
    texts = {
        f"SLEB_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
        if value is not None
    }
    unset = {f"SLEB_{name.upper()}" for name, value in fields.items() if value is None}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in unset}
    return {**kept, **texts}


def visible_gpus() -> tuple[str, ...] | None:
    """``CUDA_VISIBLE_DEVICES``: a number, the UUID of a GPU or that of a MIG device for each.

    The position in it is the index that torch and ``SLEB_DEVICE`` use. None if all are visible.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",")) if listed.strip() else ()


def environment_of_gpu(index: int) -> dict[str, str]:
    """The variable with which a child process sees only the GPU that is ``index`` here."""
    visible = visible_gpus()
    return {"CUDA_VISIBLE_DEVICES": str(index) if visible is None else visible[index]}


def foreign_environment() -> dict[str, str]:
    """The environment of a program of others.

    It is without our settings, as some are secrets, and without what ``share_cpus`` sets for us.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLEB_") and (name, value) != _SPINS
    }


def environment_with_temporary_files_in(directory: Path) -> dict[str, str]:
    """The environment of a process that writes its temporary files into ``directory``."""
    return {**os.environ, "TMPDIR": str(directory)}


# How often a thread of OpenMP looks for its next work before it sleeps: as long as a step computes
# between two products. The default, 300000, keeps the CPU from others for a hundredth of a second.
_SPINS = ("GOMP_SPINCOUNT", "2000")


def share_cpus() -> None:
    """Let waiting threads of torch sleep soon. To be called before torch is imported.

    Changes nothing that the user has set. Our own processes inherit it.
    """
    name, count = _SPINS
    if not {name, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[name] = count
