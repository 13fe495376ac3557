"""Settings of the API process: the only file of this package that reads the environment."""

from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

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
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from pruning.config import AbsolutePath, Settings
from pruning.models.names import VariantName

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


def _shadow_direction(text: str) -> str:
    if text != "dense" and VariantName.parse(text).is_dense:
        raise ValueError(f"{text!r} is neither `dense` nor the name of a variant, as `NAME@-6`")
    return text


class ServeSettings(Settings):
    """A process that answers HTTP; each field is ``SLEB_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(populate_by_name=True)

    port: int = Field(default=8000, ge=0, le=65535, description="its port; 0 picks a free one")
    insecure: bool = Field(
        default=False,
        description="`true` lets the API listen to other machines without any key",
    )
    key_rate: PositiveInt | None = Field(
        default=None,
        le=100_000,
        description="requests that each key without a `--rate` of its own may make within a "
        "minute; more are refused with 429; unset is any number",
    )
    key_concurrent: PositiveInt | None = Field(
        default=None,
        description="generations that each key without a `--concurrent` of its own may have at "
        "once; more are refused with 429; unset is any number",
    )
    api_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,512}$")] | None = Field(
        default=None,
        repr=False,
        description="key that `sleb jobs` and `sleb demo` send to the service",
    )
    preload: tuple[str, ...] | None = Field(
        default=None,
        description="JSON list of the models to load before the API is ready; unset means all "
        "dense ones",
    )
    max_weight_bytes: Annotated[ByteSize, Field(gt=0)] | None = Field(
        default=None,
        description="weights that may be loaded at once, in bytes or as `40GiB`; unset is what "
        "the device has free",
    )
    external_models: AbsolutePath | None = Field(
        default=None,
        description="file that declares models on other servers; unset is `external.toml` in the "
        "data directory, if there is one",
    )
    model_sources: tuple[str, ...] | None = Field(
        default=None,
        description="JSON list of the hub models that `sleb models add` may fetch, as "
        '`["my-org/*"]`; unset is any',
    )
    max_num_seqs: PositiveInt = Field(
        default=64, description="sequences generated at once, of all variants together"
    )
    cuda_graphs: bool = Field(
        default=True,
        description="`false` takes decode steps on a GPU one kernel at a time, in place of "
        "recording and replaying them",
    )
    max_waiting: NonNegativeInt = Field(
        default=256,
        description="sequences that may wait beyond those; more are refused with 429",
    )
    max_waiting_tokens: PositiveInt = Field(
        default=131_072,
        description="tokens, of prompts and of whole answers, that may wait; more are refused "
        "with 429",
    )
    max_model_len: Annotated[int, Field(ge=2)] | None = Field(  # one each
        default=None,
        description="tokens of prompt and answer together; unset leaves the model's limit",
    )
    max_queued_jobs: PositiveInt = Field(
        default=100,
        description="pruning jobs that may wait for a worker; more are refused with 429",
    )
    max_body_bytes: int = Field(
        default=4 * 2**20,
        ge=64,  # what the shortest request takes
        description="largest request body; a larger one is refused with 413",
    )
    max_text_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(256 * 2**20),
        description="largest file of the texts folder that a job may name, in bytes or as `1GiB`; "
        "a larger one is refused with 422",
    )
    webhook_secret: Annotated[str, AfterValidator(_signing_secret)] | None = Field(
        default=None,
        repr=False,
        description="signs webhooks: `whsec_` and the base64 of 24 to 64 random bytes; unset "
        "refuses them",
    )
    webhook_allow_private: bool = Field(
        default=False, description="`true` lets webhooks go to addresses that are not public"
    )
    keep_jobs_s: PositiveFloat | None = Field(
        default=None, description="seconds after its end that a job is kept; unset is for ever"
    )
    keep_checkpoints_s: PositiveFloat | None = Field(
        default=None,
        description="seconds after its end that a job's checkpoint is kept; unset is for ever",
    )
    request_timeout_s: PositiveFloat | None = Field(
        default=None,
        description="longest that a generation may take, in seconds; what it cuts short ends with "
        "`timeout`",
    )
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share, 0 to 1, of live requests that are replayed on another variant while "
        "nothing else runs",
    )
    shadow_direction: Annotated[str, AfterValidator(_shadow_direction)] = Field(
        default="dense",
        description="`dense`: those of pruned variants on their dense model; `NAME@-6`, or `@-6` "
        "for any: those of dense models on that variant",
    )
    otlp_endpoint: AnyHttpUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("SLEB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OpenTelemetry collector that traces go to, as `http://HOST:4318`; unset is "
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, or nowhere; needs the extra `otel`",
    )
    engine_stall_s: PositiveFloat = Field(
        default=120.0,
        description="seconds without the end of a step, while there is work, after which "
        "`/health/live` is 503",
    )
    drain_s: NonNegativeFloat = Field(
        default=30.0, description="seconds that running requests may take to end at shutdown"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.shadow_direction != "dense" and not self.shadow_share:
            raise ValueError(
                "SLEB_SHADOW_DIRECTION is set, but SLEB_SHADOW_SHARE is 0, so nothing is "
                "replayed: set the share, as 0.05, or unset the direction"
            )
        if self.webhook_allow_private and self.webhook_secret is None:
            raise ValueError(
                "SLEB_WEBHOOK_ALLOW_PRIVATE is true, but without SLEB_WEBHOOK_SECRET no webhook "
                "is sent: set the secret, or unset the other"
            )
        return self

    @property
    def keys_file(self) -> Path:
        return self.data_dir / "keys.json"

    @property
    def external_models_file(self) -> Path | None:
        """None if there is nothing to read."""
        usual = self.data_dir / "external.toml"
        return self.external_models or (usual if usual.exists() else None)

    @property
    def texts_dir(self) -> Path:
        return self.data_dir / "texts"


class ClusterSettings(ServeSettings):
    """A cluster of replicas that each answer HTTP, behind an ingress."""

    replicas: PositiveInt = Field(
        default=1, description="`sleb cluster`: replicas of the engine, at least"
    )
    max_replicas: PositiveInt | None = Field(
        default=None,
        description="replicas at most, by the load; unset is always as many as at least",
    )
    replica_gpus: NonNegativeFloat | None = Field(
        default=None, description="GPUs of a replica; unset is one, if the cluster has any"
    )
    replica_cpus: NonNegativeFloat = Field(
        default=1.0, description="CPUs of a replica, and its threads where `SLEB_THREADS` is unset"
    )
    gates: PositiveInt = Field(
        default=1, description="processes that hand requests to replicas, and need no GPU"
    )
    tokens_per_replica: PositiveInt = Field(
        default=8192, description="so many waiting tokens call for one more replica"
    )
    scale_up_s: NonNegativeFloat = Field(
        default=30.0, description="seconds that more replicas must be wanted before any is started"
    )
    scale_down_s: NonNegativeFloat = Field(
        default=600.0, description="seconds that fewer must be wanted before any is stopped"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"SLEB_MAX_REPLICAS={self.max_replicas} is less than SLEB_REPLICAS={self.replicas}"
            )
        return self


def serve_settings(**overrides: object) -> ServeSettings:
    """From the environment; what the command line gives, and is not None, comes first."""
    return ServeSettings(**_given(overrides))


def cluster_settings(**overrides: object) -> ClusterSettings:
    """As ``serve_settings``."""
    return ClusterSettings(**_given(overrides))


def _given(overrides: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if value is not None}
