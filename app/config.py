"""Settings of the API process: the only file of this package that reads the environment."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pruning.config import Settings


class ServeSettings(Settings):
    """A process that answers HTTP; each field is ``SLEB_<NAME>`` in the environment."""

    host: IPv4Address | IPv6Address | Literal["localhost"] = Field(
        default=IPv4Address("127.0.0.1"), description="Address to listen on."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 picks a free one.")
    preload: tuple[str, ...] | None = Field(
        default=None,
        description="Models to load before the service is ready, as a JSON list; unset means all.",
    )
    max_num_seqs: PositiveInt = Field(default=64, description="Sequences generated at once.")
    max_waiting: NonNegativeInt = Field(
        default=256, description="Sequences that may wait for a slot; more are refused with 429."
    )
    max_model_len: PositiveInt | None = Field(
        default=None, description="Tokens of prompt and answer together; unset: the model's limit."
    )
    max_queued_jobs: PositiveInt = Field(
        default=100, description="Pruning jobs that may wait; more are refused with 429."
    )
    max_body_bytes: PositiveInt = Field(
        default=4 * 2**20, description="Largest request body; a larger one is refused with 413."
    )
    drain_s: NonNegativeFloat = Field(
        default=30.0, description="How long running requests may take to end at shutdown."
    )

    @property
    def texts_dir(self) -> Path:
        """Calibration files that jobs may name: nothing outside of it is ever read for one."""
        return self.data_dir / "texts"


def serve_settings(**overrides: object) -> ServeSettings:
    """From the environment; what the command line gives, and is not None, comes first."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return ServeSettings(**given)  # type: ignore[arg-type]  # pydantic checks the values
