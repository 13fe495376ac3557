"""The build of torch that uv installs: for the CPU, or for the CUDA that the driver can run.

uv takes it from PyTorch's own index. PyPI has one build for Linux, for the newest CUDA.
"""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

BACKEND = "UV_TORCH_BACKEND"
# settings of the user that say where packages come from
_SOURCES = {"index", "index-url", "extra-index-url", "default-index", "find-links"}
_SOURCES |= {"no-index", "offline", "config-file", "torch-backend"}
_ASK_S = 10.0
_FROM_PYPI = (
    "torch comes from the package index, on Linux as built for CUDA, which takes 3 GB more: "
    f"PyTorch's own index has no build for this machine, or did not answer within {_ASK_S:.0f} s.\n"
)


def with_torch_backend(uv: str, variables: Mapping[str, str]) -> dict[str, str]:
    """These variables of uv, and the one that chooses the build where nothing else does."""
    chosen = {**variables, BACKEND: "auto"}
    if _has_own_sources(variables):
        return {**variables}
    if _has_torch(uv, chosen):
        return chosen
    sys.stdout.write(_FROM_PYPI)
    return {**variables}


def _has_own_sources(variables: Mapping[str, str]) -> bool:
    named = {f"UV_{name.replace('-', '_').upper()}" for name in _SOURCES}
    if not named.isdisjoint(variables):
        return True
    of_user = Path(variables.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [folder / "uv" / "uv.toml" for folder in (of_user, Path("/etc"))]
    written = [tomllib.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return any(not _SOURCES.isdisjoint({*each, *each.get("pip", {})}) for each in written)


def _has_torch(uv: str, variables: Mapping[str, str]) -> bool:
    """Whether uv finds a build of torch for this machine, installed or not. Installs nothing."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    [torch] = [each for each in project["dependencies"] if each.startswith("torch>")]
    command = [uv, "pip", "install", "--python", sys.executable, "--no-deps"]
    command += ["--dry-run", "--reinstall", torch]
    try:
        asked = subprocess.run(  # noqa: S603 - uv
            command,
            env={"UV_HTTP_RETRIES": "1", **variables},
            check=False,
            capture_output=True,
            timeout=_ASK_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
