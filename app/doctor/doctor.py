"""``sleb doctor``: all checks of this machine and its settings, one after another."""

from collections.abc import Callable, Iterable, Iterator

from pydantic import ValidationError

from app.auth.keys import InvalidKeyFile, KeyFile
from app.auth.scopes import UnprotectedAddress, check_address, is_loopback
from app.config import ServeSettings
from app.doctor import gpu, machine, models, store, vllm
from app.doctor.finding import Finding, Level, fine, note, wrong
from app.engine.autotuning import Autotuner
from app.settings import PortTaken, UnknownSetting, check_ports, check_variables, invalid_settings
from pruning.config import Settings, UnreadableSecrets, WorkerSettings
from pruning.models.products import fastest_dtype

Check = tuple[str, Callable[[], Iterable[Finding]]]


def diagnose(starting: Callable[[str], object] = lambda _what: None) -> Iterator[Finding]:
    """Check this machine, with the settings of this process. Stops at invalid settings.

    ``starting`` is called with what is checked next.
    """
    try:
        check_variables()
        api, worker = ServeSettings(), WorkerSettings()
        check_ports(api, worker)
    except (UnknownSetting, UnreadableSecrets, PortTaken, ValidationError) as error:
        reason = invalid_settings(error) if isinstance(error, ValidationError) else str(error)
        advice = "correct the settings and run this command again: the other checks were skipped"
        yield from (machine.packages(), wrong("settings", reason, advice))
        return
    for what, check in _checks(api, worker):
        starting(what)
        yield from check()


def _checks(api: ServeSettings, worker: WorkerSettings) -> Iterator[Check]:
    yield "packages", lambda: [machine.packages(), fine("settings", "valid")]
    yield "extras", lambda: machine.extras(_needed_extras(api, worker))
    yield "processor, GPU and memory", lambda: _hardware(api)
    yield "directories", lambda: _directories(api)
    yield "keys", lambda: [_keys(api)]
    yield "job store", lambda: store.store(api)
    yield "models", lambda: models.models(api.models_dir)
    yield "checkpoints", lambda: models.checkpoints(api.checkpoints_dir)
    yield "models on other servers", lambda: [models.external(api.external_models_file)]
    yield "vLLM", lambda: [vllm.vllm(api), *vllm.servers(api)]
    yield "ports and limits", lambda: _limits(api, worker)


def _needed_extras(api: ServeSettings, worker: WorkerSettings) -> dict[str, str]:
    """The extras that settings require, each with the variable."""
    store = (api.checkpoint_store or "").partition("://")[0]
    required = {
        "cluster": ("SLEB_NUM_ACTORS", worker.num_actors > 0),
        "eval": ("SLEB_TASKS_DIR", worker.tasks_dir is not None),
        "gcs": ("SLEB_CHECKPOINT_STORE", store == "gs"),
        "mlflow": ("SLEB_MLFLOW_URI", worker.mlflow_uri is not None),
        "otel": ("SLEB_OTLP_ENDPOINT", api.otlp_endpoint is not None),
        "s3": ("SLEB_CHECKPOINT_STORE", store == "s3"),
    }
    return {extra: variable for extra, (variable, is_set) in required.items() if is_set}


def _hardware(api: ServeSettings) -> list[Finding]:
    cards = gpu.gpus()
    device = gpu.device(api.device, cards)
    if device.level is Level.WRONG:
        return [device]
    memory_bytes = gpu.room_bytes(api.device, cards)
    memory_bytes = min(memory_bytes, api.max_weight_bytes or memory_bytes)
    weights = models.weights(api.models_dir)
    preloaded = list(weights) if api.preload is None else api.preload
    return [
        device,
        machine.memory(weights, preloaded, memory_bytes),
        machine.kernels(Autotuner.of(api.tune, api.data_dir).choices),
        machine.compiled(api.tune, api.data_dir),
        machine.products(fastest_dtype()),
    ]


def _directories(settings: Settings) -> list[Finding]:
    optional = (settings.checkpoints_dir, settings.valkey_dir)
    largest = max(models.weights(settings.models_dir).values(), default=0)
    return [
        machine.writable(settings.data_dir),
        *(machine.writable(directory) for directory in optional if directory.exists()),
        machine.disk(settings.data_dir, largest),
    ]


def _keys(api: ServeSettings) -> Finding:
    try:
        check_address(api)
    except (UnprotectedAddress, InvalidKeyFile) as error:
        return wrong(
            "keys", str(error), "`sleb serve` and `sleb up` do not start until this is fixed"
        )
    keys = KeyFile(api.keys_file)
    if keys.exists:
        return fine("keys", f"required; {len(keys.known())} configured")
    if is_loopback(api):
        return fine("keys", "no API keys, and none required: the API listens only on this machine")
    said = (
        f"no API keys, and SLEB_INSECURE is set: every client that can reach {api.host} "
        "has full access"
    )
    return note("keys", said, "restrict access to the port by other means, or create an API key")


def _limits(api: ServeSettings, worker: WorkerSettings) -> list[Finding]:
    host = str(api.host)
    port = worker.worker_metrics_port
    return [
        machine.port("SLEB_PORT", host, api.port, "sleb_ready"),
        machine.port("SLEB_WORKER_METRICS_PORT", host, port, "sleb_worker_up"),
        machine.open_files(api.max_num_seqs + api.max_waiting),
    ]
