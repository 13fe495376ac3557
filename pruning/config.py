"""Settings, from the environment: the only file of this package that reads it.

``Settings`` is what every process shares; a process that needs more inherits from it.
"""

import json
import os
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import AfterValidator, ByteSize, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from pruning.logs import LogFormat


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Verify(StrEnum):
    """Where a checkpoint is loaded and compared before it becomes visible."""

    PROCESS = "process"  # a fresh one, as a user's would be
    INLINE = "inline"  # the one that writes it: quicker, and blind to what is left in it
    OFF = "off"


class Settings(BaseSettings):
    """Every field is read from ``SLEB_<NAME>``; an empty variable counts as unset."""

    model_config = SettingsConfigDict(env_prefix="SLEB_", env_ignore_empty=True, frozen=True)

    data_dir: AbsolutePath = Field(
        default_factory=lambda: platformdirs.user_data_path("sleb-serve"),
        description="Models, checkpoints and the embedded Valkey live here.",
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,  # may carry a password
        description="redis://, rediss:// or unix:// URL; unset means the embedded Valkey.",
    )
    host: IPv4Address | IPv6Address | Literal["localhost"] = Field(
        default=IPv4Address("127.0.0.1"), description="Address to listen on."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = Field(
        default="text", description="text for people, json for an object a line."
    )
    device: str = Field(default="auto", description='"auto", "cpu", "cuda" or "cuda:<n>"')
    threads: PositiveInt | None = Field(
        default=None, description="CPU threads of torch; unset leaves its own choice."
    )
    state_budget: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="Bytes of hidden states a search may keep; unset: half of the free memory.",
    )
    num_actors: NonNegativeInt = Field(
        default=0, description="Ray actors to spread the candidates of a search over; 0: none."
    )
    verify: Verify = Field(
        default=Verify.PROCESS,
        description="Where a checkpoint is loaded and compared before it is published.",
    )

    tasks_dir: AbsolutePath | None = Field(
        default=None,
        description="A folder with tasks of lm-eval, which go before its own; their code is run.",
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
        default=0, ge=0, le=65535, description="Port of the worker's /metrics; 0 for none."
    )
    cancel_s: NonNegativeFloat = Field(
        default=30.0,
        description="How long a job may take to cancel or pause before its process is killed.",
    )


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
