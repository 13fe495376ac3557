"""All settings of all processes: their table, the values in effect, and checks of the variables."""

import errno
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from itertools import combinations

from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo

from app.config import ClusterSettings, ServeSettings
from pruning.config import Settings, WorkerSettings, secret_files, set_variables
from pruning.models.nvidia_driver import driver_version

_PREFIX = "SLEB_"
_TEST_PREFIX = "SLEB_TEST_"
_MASK = "***"
# Masks too much rather than too little: a password may contain a slash, and a query any key.
_USERINFO = re.compile(r"(?<=://).*@")
_QUERY = re.compile(r"(?<=[?&])(?!db=)([^=&#]+)=[^&#]*")


class UnknownSetting(ValueError):
    """A variable has the name of a setting that does not exist."""


class NoCluster(ValueError):
    """A cluster cannot serve with these settings."""


class PortTaken(ValueError):
    """Another process listens on the port, or two are configured to."""


@dataclass(frozen=True)
class Setting:
    """A field of the settings, and the environment variables that set it."""

    field: str
    variables: tuple[str, ...]  # the first that is set wins; the first one is our own
    default: str
    meaning: str  # Markdown


@dataclass(frozen=True)
class EffectiveSetting:
    """The value of a setting in this process."""

    variable: str
    value: str  # secrets are masked
    source: str  # "default", "file" or "environment"; with the variable's name if not our own


def settings() -> tuple[Setting, ...]:
    """The settings of all processes first, then those of workers, of the API and of a cluster."""
    fields = {**WorkerSettings.model_fields, **ClusterSettings.model_fields}
    return tuple(
        Setting(name, _variables(name, field), _text(_default(field)), field.description or "")
        for name, field in fields.items()
    )


def effective_settings() -> list[EffectiveSetting]:
    """In the order of ``settings``. Raises pydantic's ``ValidationError`` for invalid values."""
    worker, api = WorkerSettings(), ClusterSettings()
    sources: dict[str, Collection[str]] = {"environment": set_variables(), "file": secret_files()}
    return [
        _effective(setting, worker if hasattr(worker, setting.field) else api, sources)
        for setting in settings()
    ]


def check_variables(variables: Mapping[str, str] | None = None) -> None:
    """Raise ``UnknownSetting`` if a ``SLEB_*`` variable is not a setting.

    Checks the environment and the secret files of this process by default. ``SLEB_TEST_*`` is
    reserved for tests.
    """
    names = {*set_variables(), *secret_files()} if variables is None else set(variables)
    known = {name for setting in settings() for name in setting.variables}
    unknown = sorted(
        name
        for name in names
        if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name not in known
    )
    if unknown:
        raise UnknownSetting("\n".join(_unknown(name, known) for name in unknown))


def invalid_settings(error: ValidationError) -> str:
    """One line for each invalid setting. Values are left out, as they may be secrets."""
    return "\n".join(
        _invalid(".".join(map(str, problem["loc"])), problem["msg"])
        for problem in error.errors(include_url=False, include_input=False)
    )


def check_port(settings: ServeSettings) -> None:
    """Raise ``PortTaken`` at once if another process listens there, and not after seconds."""
    host = str(settings.host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    options = {
        "--port or SLEB_PORT": settings.port,
        "SLEB_METRICS_PORT": settings.metrics_port,
    }
    for option, port in options.items():
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"port {port} of {host} is in use, perhaps by another service: stop "
                    f"it, or choose another port with {option}"
                ) from error


def check_device(settings: Settings) -> None:
    """Raise ``UnusableDevice`` at the start of a service, and not at its first request.

    Warn there of a driver that is too old.
    """
    needs_torch = settings.device.startswith("cuda") or driver_version() is not None
    if settings.device != "cpu" and needs_torch:
        from pruning.models.store import pick_device  # noqa: PLC0415 - imports torch, for seconds

        pick_device(settings.device)


def check_ports(api: ServeSettings, worker: WorkerSettings) -> None:
    """Check that all that listens on one machine has a port each. Raises ``PortTaken``."""
    ports = {
        "SLEB_PORT": api.port,
        "SLEB_METRICS_PORT": api.metrics_port,
        "SLEB_WORKER_METRICS_PORT": worker.worker_metrics_port,
    }
    for (name, port), (other_name, other) in combinations(ports.items(), 2):
        if port and port == other:
            raise PortTaken(f"{name} and {other_name} are both {port}: use different ports")


def check_cluster(settings: ClusterSettings) -> None:
    """Check what needs no Ray. Raises ``NoCluster``."""
    if settings.tls_cert is not None:
        raise NoCluster(
            "the ingress of a cluster supports only HTTP: unset SLEB_TLS_CERT, "
            "SLEB_TLS_KEY and SLEB_TLS_CLIENT_CA, and use a TLS proxy"
        )
    if settings.metrics_port:
        raise NoCluster(
            "the ingress of a cluster answers /metrics for all replicas: unset SLEB_METRICS_PORT, "
            "and block that path in the proxy in front"
        )
    if settings.redis_url is None:
        raise NoCluster(  # each machine would have its own job store
            "SLEB_REDIS_URL must be a Redis or Valkey server that all machines of the "
            "cluster can reach: a cluster does not start one"
        )


def without_secrets(url: str) -> str:
    """The URL with its user, its password and the values of its query masked, except ``db``."""
    return _QUERY.sub(rf"\1={_MASK}", _USERINFO.sub(f"{_MASK}@", url))


def _invalid(name: str, message: str) -> str:
    own = message.removeprefix("Value error, ")  # may begin with the name of a variable
    reason = message[:1].lower() + message[1:] if own == message else own
    return f"setting {name} ({_PREFIX}{name.upper()}): {reason}" if name else f"settings: {reason}"


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, [one for one in known if one.startswith(_PREFIX)], n=1)
    hint = f"did you mean {near[0]}?" if near else "see docs/settings.md for all settings."
    return f"unknown setting {name}: {hint} Correct or unset the variable"


def _effective(
    setting: Setting,
    values: WorkerSettings | ClusterSettings,
    sources: Mapping[str, Collection[str]],
) -> EffectiveSetting:
    text = _text(getattr(values, setting.field))
    if "://" in text:
        text = without_secrets(text)
    elif text != "unset" and not type(values).model_fields[setting.field].repr:
        text = _MASK
    own = setting.variables[0]
    set_in = (  # in order of precedence
        source if name == own else f"{source}, {name}"
        for source, names in sources.items()
        for name in setting.variables
        if name in names
    )
    return EffectiveSetting(own, text, next(set_in, "default"))


def _text(value: object) -> str:
    """The value as written into a variable; "unset" for None."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return str(value.value if isinstance(value, Enum) else value)


def _variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (f"{_PREFIX}{name.upper()}",)


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})
