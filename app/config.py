"""Settings of the API process. No other module of this package reads the environment."""

import shlex
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

PrefixCache = Literal["on", "shared", "off"]

_SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of a secret, not a secret
_OF_THE_SERVICE = ("--uds", "--served-model-name", "--api-key", "--ssl-certfile")


def _signing_secret(text: str) -> str:
    """Check a secret in the format of Standard Webhooks: the prefix and padded base64."""
    try:
        key = b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(_SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(
            "must be whsec_ followed by the base64 of 24 to 64 random bytes; generate one "
            "with: echo whsec_$(openssl rand -base64 32)"
        )
    return text


def _command_line(text: str) -> str:
    for argument in shlex.split(text):  # raises ValueError for an open quote
        if (option := argument.partition("=")[0].replace("_", "-")) in _OF_THE_SERVICE:
            raise ValueError(f"{option} is set by the service: remove it")
    return text


def _shadow_direction(text: str) -> str:
    if text != "dense" and VariantName.parse(text).is_dense:
        raise ValueError(f"{text!r}: expected `dense` or a variant, e.g. `NAME@-6`")
    return text


def _unset(description: str, **others: Any) -> Any:  # noqa: ANN401 - of any type
    """A setting that is None by default. ``others`` are those of a pydantic field."""
    return Field(default=None, description=description, **others)


class ServeSettings(Settings):
    """Settings of an HTTP server; each field is ``SLEB_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(populate_by_name=True)

    port: int = Field(
        default=8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one"
    )
    tls_cert: AbsolutePath | None = _unset(
        "PEM file with the certificate of the API and its chain; unset serves HTTP. "
        "Reloaded when it changes"
    )
    tls_key: AbsolutePath | None = _unset(
        "PEM file with the key of `SLEB_TLS_CERT`, without a passphrase"
    )
    tls_client_ca: AbsolutePath | None = _unset(
        "PEM file with CAs; only clients with a certificate from one of them can connect"
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="port of `/metrics` alone, by HTTP and without keys, for a network that only "
        "Prometheus reaches; 0 answers `/metrics` on the port of the API, to all who reach it",
    )
    vllm_metrics: bool = Field(
        default=False,
        description="`true` adds the metrics of live requests under vLLM's names (`vllm:...`), for "
        "dashboards and autoscalers that were made for vLLM",
    )
    insecure: bool = Field(
        default=False,
        description="`true` accepts connections from other machines without API keys",
    )
    address_connections: PositiveInt | None = _unset(
        "open connections allowed per address; beyond them only `/health` is answered; "
        "unset is half of what the limit of open files allows. A proxy counts as one "
        "address"
    )
    key_rate: PositiveInt | None = _unset(
        "requests per minute for each key without its own `--rate`; more are refused "
        "with 429; unset is no limit",
        le=100_000,
    )
    key_concurrent: PositiveInt | None = _unset(
        "concurrent generations for each key without its own `--concurrent`; more are "
        "refused with 429; unset is no limit"
    )
    tenant_queued_jobs: PositiveInt | None = _unset(
        "jobs that may wait or be paused, for each tenant without its own quota; more "
        "are refused with 429; unset is no limit"
    )
    tenant_running_jobs: PositiveInt | None = _unset(
        "jobs that run at once, for each tenant without its own quota; others wait; "
        "unset is no limit"
    )
    tenant_checkpoint_bytes: Annotated[ByteSize, Field(gt=0)] | None = _unset(
        "size of all checkpoints, in bytes or as `10GB`, for each tenant without its "
        "own quota; jobs that may write more are refused with 507; unset is no limit"
    )
    tenant_tokens_per_min: PositiveInt | None = _unset(
        "prompt and output tokens per minute, for each tenant without its own quota; "
        "more generations are refused with 429; unset is no limit"
    )
    audit_log: AbsolutePath | None = _unset(
        "file for the audit log: one line of JSON for each request before it is "
        "processed, and one for its response; unset writes none"
    )
    api_key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,512}$")] | None = _unset(
        "API key that `sleb jobs` sends to the service", repr=False
    )
    preload: tuple[str, ...] | None = _unset(
        "JSON list of models to load before the API is ready; unset loads all dense models"
    )
    max_weight_bytes: Annotated[ByteSize, Field(gt=0)] | None = _unset(
        "maximum size of all loaded weights, in bytes or e.g. `40GiB`; unset is the "
        "free memory of the device"
    )
    external_models: AbsolutePath | None = _unset(
        "file that declares models on external servers; unset is `external.toml` in "
        "the data directory, if it exists"
    )
    model_sources: tuple[str, ...] | None = _unset(
        "JSON list of hub models and URLs that `sleb models add` may download, e.g. "
        '`["my-org/*", "s3://models/*"]`; unset allows all'
    )
    max_num_seqs: PositiveInt = Field(
        default=64, description="maximum sequences generated concurrently, over all variants"
    )
    max_batch_tokens: PositiveInt = Field(
        default=512,
        description="prompt tokens processed per step, from one or several prompts, and up to an "
        "eighth more to finish a prompt; lower values reduce the latency of running "
        "outputs",
    )
    kv_cache_bytes: Annotated[ByteSize, Field(gt=0)] | None = _unset(
        "memory for keys and values, for models whose keys have the same shape, in "
        "bytes or as `8GiB`; unset is a quarter of the free memory on a CPU, and 0.8 of "
        "the memory that the largest step leaves on a GPU, when the first such model is "
        "loaded; on a CPU it is allocated as needed, 64 MiB ahead"
    )
    prefix_cache: PrefixCache = Field(
        default="on",
        description="`on` caches prompt prefixes for later prompts that start with them; with API "
        "keys, within a tenant. `shared` shares the cache between tenants, who can then "
        "infer from timings what others have sent. `off` processes every prompt in full",
    )
    reproducible: bool = Field(
        default=False,
        description="`true` makes each output bit-for-bit independent of other requests, timings "
        "and restarts, on processors of the same kind",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="`false` launches the kernels of each decode step on a GPU one by one, instead "
        "of replaying CUDA graphs",
    )
    engine: Literal["own", "vllm"] = Field(
        default="own",
        description="`own` generates in this process; `vllm` starts `vllm serve` for each "
        "requested model or variant",
    )
    vllm: AbsolutePath | None = _unset(
        "path of the `vllm` program in its own environment; unset is the one on the PATH"
    )
    vllm_models: tuple[str, ...] = Field(
        default=(),
        description="JSON list of dense models that vLLM serves, with their variants, even if "
        "`SLEB_ENGINE` is `own`",
    )
    vllm_args: Annotated[str, AfterValidator(_command_line)] = Field(
        default="",
        description="options for `vllm serve`, such as `--tensor-parallel-size 2`; they override "
        "those that this service sets",
    )
    vllm_servers: PositiveInt = Field(
        default=2,
        description="vLLM servers that run at once, each with an equal share of the memory; the "
        "least recently used one is stopped for another model",
    )
    vllm_start_s: PositiveFloat = Field(
        default=600.0, description="seconds that a vLLM server may take from start to first token"
    )
    vllm_cache_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(50 * 2**30),
        description="maximum size of the variants exported for vLLM, in bytes or as `50GiB`; the "
        "least recently used are removed",
    )
    max_waiting: NonNegativeInt = Field(
        default=256,
        description="sequences that may wait for a free slot; more are refused with 429",
    )
    max_waiting_tokens: PositiveInt = Field(
        default=131_072,
        description="prompt and output tokens that waiting requests may need; more are refused "
        "with 429",
    )
    max_model_len: Annotated[int, Field(ge=2)] | None = _unset(  # one of prompt, one of output
        "maximum prompt and output tokens per sequence; unset is the model's context length"
    )
    max_queued_jobs: PositiveInt = Field(
        default=100,
        description="maximum queued pruning jobs; more are rejected with 429",
    )
    max_body_bytes: int = Field(
        default=4 * 2**20,
        ge=64,  # the shortest useful request
        description="maximum size of a request body in bytes; larger ones are rejected with 413",
    )
    max_text_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(256 * 2**20),
        description="maximum size of a calibration file in the texts folder, in bytes or e.g. "
        "`1GiB`; larger ones are rejected with 422",
    )
    webhook_secret: Annotated[str, AfterValidator(_signing_secret)] | None = _unset(
        "key that signs webhooks: `whsec_` and 24 to 64 random bytes in base64; unset "
        "refuses jobs with a webhook",
        repr=False,
    )
    webhook_allow_private: bool = Field(
        default=False, description="`true` allows webhooks to private addresses"
    )
    keep_jobs_s: PositiveFloat | None = _unset(
        "seconds to keep a job after it ends; unset is forever"
    )
    keep_checkpoints_s: PositiveFloat | None = _unset(
        "seconds to keep the checkpoint of a job after it ends; unset is forever"
    )
    request_timeout_s: PositiveFloat | None = _unset(
        "maximum duration of a generation in seconds; an output that reaches it has the "
        "finish reason `timeout`"
    )
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of live requests, 0 to 1, to replay on another variant while the "
        "engine is idle",
    )
    shadow_direction: Annotated[str, AfterValidator(_shadow_direction)] = Field(
        default="dense",
        description="`dense` replays requests for pruned variants on the dense model; `NAME@-6`, "
        "or `@-6` for every model, replays requests for the dense model on that variant",
    )
    otlp_endpoint: AnyHttpUrl | None = _unset(
        "OpenTelemetry collector for traces, e.g. `http://HOST:4318`; unset is "
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, or no traces; requires the extra `otel`",
        validation_alias=AliasChoices("SLEB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    engine_stall_s: PositiveFloat = Field(
        default=120.0,
        description="maximum seconds of an engine step before `/health/live` returns 503",
    )
    drain_s: NonNegativeFloat = Field(
        default=30.0, description="seconds that running requests may take to finish at shutdown"
    )

    @model_validator(mode="after")
    def _shadow_fits(self) -> Self:
        if self.shadow_direction != "dense" and not self.shadow_share:
            raise ValueError(
                "SLEB_SHADOW_DIRECTION is set, but SLEB_SHADOW_SHARE is 0, so nothing is "
                "replayed: set the share, e.g. 0.05, or unset the direction"
            )
        if self.engine == "vllm" and self.shadow_share and self.vllm_servers < 2:
            raise ValueError(
                "SLEB_SHADOW_SHARE requires two vLLM servers, because a request is replayed on "
                "two models, but SLEB_VLLM_SERVERS is 1: set SLEB_VLLM_SERVERS to 2 or more, "
                "or unset the share"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None) or (
            self.tls_client_ca is not None and self.tls_cert is None
        ):
            raise ValueError(
                "incomplete TLS settings: SLEB_TLS_CERT and SLEB_TLS_KEY must be set together, "
                "and SLEB_TLS_CLIENT_CA requires both"
            )
        if self.webhook_allow_private and self.webhook_secret is None:
            raise ValueError(
                "SLEB_WEBHOOK_ALLOW_PRIVATE is true, but SLEB_WEBHOOK_SECRET is not set, so no "
                "webhook is sent: set the secret, or unset SLEB_WEBHOOK_ALLOW_PRIVATE"
            )
        return self

    @property
    def keys_file(self) -> Path:
        return self.data_dir / "keys.json"

    @property
    def sessions_file(self) -> Path:
        """The secret that signs the sessions of browsers."""
        return self.data_dir / "sessions.secret"

    @property
    def external_models_file(self) -> Path | None:
        """The file that declares external models, or None if there is none."""
        usual = self.data_dir / "external.toml"
        return self.external_models or (usual if usual.exists() else None)

    @property
    def texts_dir(self) -> Path:
        return self.data_dir / "texts"

    @property
    def vllm_dir(self) -> Path:
        """The exports and logs of vLLM."""
        return self.data_dir / "vllm"

    @property
    def vllm_arguments(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.vllm_args))


class ClusterSettings(ServeSettings):
    """Settings of a cluster: replicas that serve HTTP, behind an ingress."""

    replicas: PositiveInt = Field(
        default=1, description="`sleb cluster`: minimum number of replicas of the engine"
    )
    max_replicas: PositiveInt | None = _unset(
        "maximum number of replicas; unset is `SLEB_REPLICAS`, without autoscaling"
    )
    replica_gpus: NonNegativeFloat | None = _unset(
        "GPUs per replica; unset is 1 if the cluster has GPUs"
    )
    replica_cpus: NonNegativeFloat = Field(
        default=1.0,
        description="CPUs per replica, and its number of threads if `SLEB_THREADS` is unset",
    )
    gates: PositiveInt = Field(
        default=1,
        description="number of ingress processes, which forward requests to replicas and need no "
        "GPU",
    )
    tokens_per_replica: PositiveInt = Field(
        default=8192,
        description="target number of waiting tokens per replica; above it, another replica is "
        "started",
    )
    scale_up_s: NonNegativeFloat = Field(
        default=30.0, description="seconds of higher load before another replica is started"
    )
    scale_down_s: NonNegativeFloat = Field(
        default=600.0, description="seconds of lower load before a replica is stopped"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"SLEB_MAX_REPLICAS={self.max_replicas} is less than SLEB_REPLICAS={self.replicas}"
            )
        return self


def serve_settings(**overrides: object) -> ServeSettings:
    """Read the settings from the environment. Overrides that are not None take precedence."""
    return ServeSettings(**_given(overrides))


def cluster_settings(**overrides: object) -> ClusterSettings:
    """As ``serve_settings``."""
    return ClusterSettings(**_given(overrides))


def _given(overrides: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in overrides.items() if value is not None}
