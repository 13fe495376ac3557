"""The doctor's check of vLLM, if the settings ask for it or it is on the PATH."""

import subprocess

from app.config import ServeSettings
from app.doctor.finding import Finding, fine, wrong
from app.vllm.options import VllmMissing, VllmOptions
from app.vllm.process import MIN_VERSION, is_new_enough
from pruning.config import foreign_environment

_VERSION_S = 120.0  # it imports torch


def vllm(api: ServeSettings) -> Finding:
    """Whether ``vllm`` is there, starts and is new enough. No server is started."""
    try:
        options = VllmOptions.of(api)
    except VllmMissing as error:
        return wrong("vllm", str(error), "until then `sleb serve` does not start")
    if options is None:
        return fine("vllm", "not installed, and not needed")
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
    said = lines[-1] if lines else "it says nothing"
    if ran.returncode != 0:
        advice = "install vLLM again, in an environment of its own"
        return wrong("vllm", f"{options.program} --version failed: {said}", advice)
    if not is_new_enough(said):
        least = ".".join(map(str, MIN_VERSION))
        return wrong("vllm", f"{options.program} is {said}", f"install vLLM {least} or newer")
    return fine("vllm", f"{options.program} is {said}")
