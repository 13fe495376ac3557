"""``sleb doctor``: everything that may keep the service from working here, looked at in turn."""

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.auth.keys import InvalidKeyFile, KeyFile
from app.auth.scopes import OpenDoor, check_door, is_loopback
from app.config import ServeSettings
from app.doctor import gpu, machine, models, store
from app.doctor.finding import Finding, Level, fine, note, wrong
from app.settings import PortTaken, UnknownSetting, check_ports, check_variables
from app.terminal import print_json
from pruning.config import Settings, UnreadableSecrets, WorkerSettings

_COLOURS = {Level.OK: "green", Level.NOTE: "yellow", Level.WRONG: "red"}


def diagnose() -> list[Finding]:
    """Of this machine, with the environment of this process; settings that cannot be end it."""
    try:
        check_variables()
        api, worker = ServeSettings(), WorkerSettings()
        check_ports(api, worker)
    except (UnknownSetting, UnreadableSecrets, PortTaken, ValidationError) as error:
        advice = "correct the environment, then ask again: the rest was not looked at"
        return [machine.packages(), wrong("settings", _reason(error), advice)]
    return [
        machine.packages(),
        fine("settings", "known, and fit together"),
        machine.extras(_needed(api)),
        *_hardware(api),
        *_directories(api),
        _keys(api),
        *store.store(api),
        *models.models(api.models_dir),
        *models.checkpoints(api.checkpoints_dir),
        models.external(api.external_models_file),
        *_limits(api, worker),
    ]


def is_healthy(findings: Sequence[Finding]) -> bool:
    return all(its.level is not Level.WRONG for its in findings)


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        found = [asdict(its) for its in findings]
        print_json({"healthy": is_healthy(findings), "findings": found})
        return
    console = Console(highlight=False)
    table = Table()
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for its in findings:
        level = f"[{_COLOURS[its.level]}]{its.level}[/]"
        table.add_row(escape(its.check), level, escape(its.said), escape(its.advice))
    console.print(table)
    num_wrong = sum(its.level is Level.WRONG for its in findings)
    console.print("all is well" if is_healthy(findings) else f"wrong: {num_wrong}")


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_input=False, include_url=False)
    return "; ".join(": ".join([*map(str, its["loc"]), its["msg"]]) for its in found)


def _needed(api: ServeSettings) -> dict[str, str]:
    """Packages of the extras, to the setting that asks for them."""
    asked = {
        "ray": ("SLEB_NUM_ACTORS", api.num_actors > 0),
        "opentelemetry-sdk": ("SLEB_OTLP_ENDPOINT", api.otlp_endpoint is not None),
        "lm-eval": ("SLEB_TASKS_DIR", api.tasks_dir is not None),
    }
    return {package: variable for package, (variable, is_set) in asked.items() if is_set}


def _hardware(api: ServeSettings) -> list[Finding]:
    found = gpu.gpus()
    device = gpu.device(api.device, found)
    if device.level is Level.WRONG:
        return [device]
    room = gpu.room_bytes(api.device, found)
    room = min(room, api.max_weight_bytes or room)
    weights = models.weights(api.models_dir)
    preloaded = list(weights) if api.preload is None else api.preload
    return [device, machine.memory(weights, preloaded, room)]


def _directories(settings: Settings) -> list[Finding]:
    there = (settings.checkpoints_dir, settings.valkey_dir)
    largest = max(models.weights(settings.models_dir).values(), default=0)
    return [
        machine.writable(settings.data_dir),
        *(machine.writable(its) for its in there if its.exists()),
        machine.disk(settings.data_dir, largest),
    ]


def _keys(api: ServeSettings) -> Finding:
    try:
        check_door(api)
    except (OpenDoor, InvalidKeyFile) as error:
        return wrong("keys", str(error), "until then neither `sleb serve` nor `sleb up` starts")
    keys = KeyFile(api.keys_file)
    if keys.exists:
        return fine("keys", f"asked for; there are {len(keys.known())}")
    if is_loopback(api):
        return fine("keys", "none, and none needed: only this machine is listened to")
    said = f"none, and insecure: whoever reaches {api.host} may do everything"
    return note("keys", said, "be sure that something else keeps others out, or make a key")


def _limits(api: ServeSettings, worker: WorkerSettings) -> list[Finding]:
    host = str(api.host)
    port = worker.worker_metrics_port
    return [
        machine.port("SLEB_PORT", host, api.port, "sleb_ready"),
        machine.port("SLEB_WORKER_METRICS_PORT", host, port, "sleb_worker_up"),
        machine.open_files(api.max_num_seqs + api.max_waiting),
    ]
