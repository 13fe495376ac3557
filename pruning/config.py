"""Settings, from the environment and the files of secrets: the only file that reads it here.

``Settings`` is what every process shares; a process that needs more inherits from it.
"""

import json
import os
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


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def _store_url(text: str) -> str:
    """What is said of it must not show it: it may carry a password."""
    try:
        parts = urlsplit(text)
        is_good = parts.port != 0 and text.startswith(("redis://", "rediss://", "unix://"))
    except ValueError:
        is_good = False
    if not is_good or (parts.scheme == "unix" and not parts.path):
        raise ValueError("must be redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
    return text


class Verify(StrEnum):
    """Where a checkpoint is loaded and compared before it becomes visible."""

    PROCESS = "process"  # a fresh one, as a user's would be
    INLINE = "inline"  # the one that writes it: quicker, and blind to what is left in it
    OFF = "off"


class UnreadableSecrets(ValueError):
    """What ``SLEB_SECRETS_DIR`` names cannot be read."""


class Settings(BaseSettings):
    """Every field is read from ``SLEB_<NAME>``; an empty variable counts as unset.

    Where there is none, a file of that name in ``secrets_dir`` is read.

    Descriptions are Markdown: the table of all settings is made of them.
    """

    model_config = SettingsConfigDict(
        env_prefix="SLEB_",
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    data_dir: AbsolutePath = Field(
        default_factory=lambda: platformdirs.user_data_path("sleb-serve"),
        description="models, checkpoints, texts and the embedded Valkey",
    )
    redis_url: Annotated[str, AfterValidator(_store_url)] | None = Field(
        default=None,
        repr=False,  # may carry a password
        description="`redis://`, `rediss://` or `unix://` URL; unset starts the embedded Valkey",
    )
    secrets_dir: AbsolutePath | None = Field(
        default=None,
        description="folder with a file for each setting that is to be secret, named like its "
        "variable (`sleb_redis_url`); the variable itself goes before it",
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
        description="`text`, or `json` for an object a line, with the id of the request or the job",
    )
    device: str = Field(
        default="auto",
        description="`cpu`, `cuda`, `cuda:1`, ...; `auto` takes CUDA where there is some",
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of torch, in each process; unset leaves the choice to torch",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - it may name no folder
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
    def valkey_dir(self) -> Path:
        return self.data_dir / "valkey"


class WorkerSettings(Settings):
    """A process that prunes: a worker, or a command that needs no server."""

    state_budget: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="memory for the hidden states of a search, in bytes or as `4GiB`; unset takes "
        "half of what is free",
    )
    num_actors: NonNegativeInt = Field(
        default=0,
        description="Ray actors that share a search; 0 searches in the process of the job",
    )
    verify: Verify = Field(
        default=Verify.PROCESS,
        description="where a checkpoint is loaded and compared before it is published: a fresh "
        "`process`, `inline` or `off`",
    )
    tasks_dir: AbsolutePath | None = Field(
        default=None,
        description="folder with tasks of lm-eval, which go before its own for the zero-shot tasks "
        "of a job or of `sleb eval`; their code is run",
    )
    worker_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port of a worker's own `/metrics`; 0 for none"
    )
    cancel_s: NonNegativeFloat = Field(
        default=30.0,
        description="seconds that a job may take to cancel or pause before its process is killed",
    )


def set_variables() -> dict[str, str]:
    """All variables of this process that are not empty, by their names in capitals."""
    return {name.upper(): value for name, value in os.environ.items() if value}


def secret_files() -> dict[str, Path]:
    """The files of ``SLEB_SECRETS_DIR``, by their names in capitals.

    Raises ``UnreadableSecrets``.
    """
    directory = _secrets_dir()
    found = directory.iterdir() if directory else ()
    return {path.name.upper(): path for path in found if path.is_file()}


def _secrets_dir() -> Path | None:
    given = set_variables().get("SLEB_SECRETS_DIR")
    if given is None:
        return None
    directory = _absolute(Path(given))
    try:
        closed = [
            its for its in directory.iterdir() if its.is_file() and not os.access(its, os.R_OK)
        ]
    except OSError as error:
        raise UnreadableSecrets(
            f"SLEB_SECRETS_DIR is {given}, which is no folder that can be read "
            f"({error.strerror}): name one, or unset the variable"
        ) from error
    if closed:
        raise UnreadableSecrets(f"{closed[0]} cannot be read: let the user of this process read it")
    return directory


def child_environment(settings: Settings, redis_url: str | None = None) -> dict[str, str]:
    """For a process of ours to come to the same settings, and to the same job store."""
    fields = settings.model_dump(mode="json", exclude_none=True)
    if redis_url is not None:
        fields["redis_url"] = redis_url
    texts = {
        f"SLEB_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    return {**os.environ, **texts}


def offline_environment() -> dict[str, str]:
    """For a process that loads models and may ask no hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
