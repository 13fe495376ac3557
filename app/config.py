"""Settings of the API process: the only file of this package that reads the environment."""

from base64 import b64decode
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyHttpUrl,
    ByteSize,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic_settings import SettingsConfigDict

from pruning.config import AbsolutePath, Settings

_DIRECTION = r"^(dense|[^@]*@.+)$"
_SECRET_PREFIX = "whsec_"  # noqa: S105 - how a secret begins


def _signing_secret(text: str) -> str:
    """As Standard Webhooks has it, in base64 with its padding."""
    try:
        key = b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(_SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(
            "must be whsec_ and the base64 of 24 to 64 random bytes; to make one: "
            "echo whsec_$(openssl rand -base64 32)"
        )
    return text


class ServeSettings(Settings):
    """A process that answers HTTP; each field is ``SLEB_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(
        hide_input_in_errors=True,  # it may be a secret
        populate_by_name=True,
    )

    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 picks a free one.")
    preload: tuple[str, ...] | None = Field(
        default=None,
        description="Models to load before the service is ready, as a JSON list; unset means all.",
    )
    max_weight_bytes: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="Weights that may be loaded at once; unset: what the device has free.",
    )
    external_models: AbsolutePath | None = Field(
        default=None,
        description="TOML file that declares models of other servers; unset: the data "
        "directory's external.toml, if there is one.",
    )
    model_sources: tuple[str, ...] | None = Field(
        default=None,
        description='Hub models that may be fetched, as ["ORG/*"]; unset: any. HTTP fetches none.',
    )
    max_num_seqs: PositiveInt = Field(default=64, description="Sequences generated at once.")
    max_waiting: NonNegativeInt = Field(
        default=256, description="Sequences that may wait for a slot; more are refused with 429."
    )
    max_waiting_tokens: PositiveInt = Field(
        default=131_072,
        description="Tokens, of prompts and of whole answers, that may wait; more are refused.",
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
    webhook_secret: Annotated[str, AfterValidator(_signing_secret)] | None = Field(
        default=None,
        repr=False,
        description="whsec_ and the base64 of 24 to 64 random bytes; unset: no webhooks.",
    )
    webhook_allow_private: bool = Field(
        default=False, description="Whether webhooks may go to addresses that are not public."
    )
    keep_jobs_s: PositiveFloat | None = Field(
        default=None, description="How long after its end a job is kept; unset: for ever."
    )
    keep_checkpoints_s: PositiveFloat | None = Field(
        default=None, description="How long its checkpoint is kept; unset: for ever."
    )
    request_timeout_s: PositiveFloat | None = Field(
        default=None, description="The longest that a generation may take; unset: no limit."
    )
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of live requests that are replayed on another variant while idle.",
    )
    shadow_direction: Annotated[str, Field(pattern=_DIRECTION)] = Field(
        default="dense",
        description="dense: those of pruned variants on their dense model; NAME@-6, or @-6 for "
        "any: those of dense models on that variant.",
    )
    otlp_endpoint: AnyHttpUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("SLEB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OpenTelemetry collector that traces go to, by HTTP; unset: nowhere. "
        "OTEL_EXPORTER_OTLP_ENDPOINT is another name of it.",
    )
    engine_stall_s: PositiveFloat = Field(
        default=120.0, description="A step of the engine that takes longer makes it count as dead."
    )
    drain_s: NonNegativeFloat = Field(
        default=30.0, description="How long running requests may take to end at shutdown."
    )

    @property
    def external_models_file(self) -> Path | None:
        """None if there is nothing to read."""
        usual = self.data_dir / "external.toml"
        return self.external_models or (usual if usual.exists() else None)

    @property
    def texts_dir(self) -> Path:
        """Calibration files that jobs may name: nothing outside of it is ever read for one."""
        return self.data_dir / "texts"


def serve_settings(**overrides: object) -> ServeSettings:
    """From the environment; what the command line gives, and is not None, comes first."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return ServeSettings(**given)  # type: ignore[arg-type]  # pydantic checks the values
