"""The doctor's checks of vLLM, if the settings ask for it or it is on the PATH."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from app.config import ServeSettings
from app.doctor.finding import Finding, fine, note, wrong
from app.doctor.machine import asked
from app.vllm.options import VllmMissing, VllmOptions
from app.vllm.process import MIN_VERSION, is_new_enough
from pruning.config import foreign_environment
from pruning.plural import counted

_VERSION_S = 120.0  # it imports torch


def vllm(api: ServeSettings) -> Finding:
    """Whether ``vllm`` is there, starts and is new enough. No server is started."""
    try:
        options = VllmOptions.of(api)
    except VllmMissing as error:
        return wrong("vllm", str(error), "`sleb serve` does not start until this is fixed")
    if options is None:
        return fine("vllm", "not installed, and not required")
    try:
        ran = subprocess.run(  # noqa: S603 - what the user has named
            [options.program, "--version"],
            env=foreign_environment(),
            capture_output=True,
            text=True,
            timeout=_VERSION_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return wrong("vllm", str(error), "install vLLM again, in an environment of its own")
    lines = (ran.stdout if ran.returncode == 0 else ran.stderr).strip().splitlines()
    said = lines[-1] if lines else "no output"
    if ran.returncode != 0:
        advice = "install vLLM again, in an environment of its own"
        return wrong("vllm", f"{options.program} --version failed: {said}", advice)
    if not is_new_enough(said):
        least = ".".join(map(str, MIN_VERSION))
        return wrong("vllm", f"{options.program} is {said}", f"install vLLM {least} or newer")
    return fine("vllm", f"{options.program} is {said}")


def servers(api: ServeSettings) -> Iterator[Finding]:
    """What the service that runs with these settings says of its vLLM servers, one by one."""
    text = asked(str(api.host), api.port, "/health/ready") if api.port else None
    for name, server in _states(text).items():
        yield _server(name, server, api)


def _states(text: str | None) -> Mapping[str, Mapping[str, Any]]:
    """By model; none if nothing answers, or something else than this service."""
    try:
        content = json.loads(text or "{}").get("vllm", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    states = content.items() if isinstance(content, dict) else ()
    return {name: state for name, state in states if isinstance(state, dict) and "state" in state}


def _server(name: str, server: Mapping[str, Any], api: ServeSettings) -> Finding:
    check, log = f"vllm of {name}", api.vllm_dir / "logs" / f"{name}.log"
    num_restarts = server.get("num_restarts") or 0
    restarts = f", restarted {counted(num_restarts, 'time')}" if num_restarts else ""
    said = f"{server['state']}{restarts}"
    if server.get("detail"):
        said += f": {server['detail']}"
    if server["state"] == "failed":
        advice = f"see its log {log}; the next request after a minute restarts it"
        return wrong(check, said, advice)
    if server["state"] == "restarting":
        return note(check, said, f"see its log {log}")
    return fine(check, said)
