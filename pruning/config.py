"""Settings, from the environment: the only file of this package that reads it.

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
from pydantic_settings import BaseSettings, SettingsConfigDict

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


class Settings(BaseSettings):
    """Every field is read from ``SLEB_<NAME>``; an empty variable counts as unset.

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
    """A process that runs pruning jobs."""

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
