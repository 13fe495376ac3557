"""``python -m tools.install UV ARGUMENT...``: ``pip install ARGUMENT...``, by the program ``UV``.

uv installs in a third of pip's time, but does not read pip's settings. Here it gets those that it
knows by another name. pip installs where it has other settings, and where uv fails or is missing.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.downloads import announcement
from tools.torch_backend import BACKEND, with_torch_backend

# pip's name and uv's; several values are parted by white space in pip, and in uv as said here
_NAMES = {
    "cert": ("SSL_CERT_FILE", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
# they do not change what is installed
_OF_PIP_ALONE = {"cache-dir", "config-file", "disable-pip-version-check", "no-cache-dir"}
_OF_PIP_ALONE |= {"no-input", "progress-bar", "retries", "root-user-action"}
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_SECTIONS = ("global", "install", ":env:")  # of ``pip install``; a later one decides


def main(uv: str, arguments: list[str]) -> int:
    """Install into the environment of this Python; return the exit code."""
    settings = pip_settings()
    others = sorted(settings.keys() - _NAMES - _OF_PIP_ALONE)
    if others:
        sys.stdout.write(f"pip installs, as uv does not know its settings {', '.join(others)}.\n")
    elif Path(uv).is_file() and _is_installed_by(uv, arguments, environment_of_uv(uv, settings)):
        return 0
    # without bytecode, as uv does it: Python compiles the part that is imported, if it may
    options = [] if sys.dont_write_bytecode else ["--no-compile"]
    return _run(*_PIP, "install", *options, *arguments)


def pip_settings() -> dict[str, str]:
    """What files and environment variables say to ``pip install``, by the name of an option."""
    command = [*_PIP, "config", "list"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - pip
    return settings_in(listed.stdout.splitlines())


def settings_in(lines: Iterable[str]) -> dict[str, str]:
    """The same of lines such as ``global.timeout='60'``, which ``pip config list`` prints."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in lines:
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        found.get(section, {})[option] = ast.literal_eval(value)
    return {option: value for section in _SECTIONS for option, value in found[section].items()}


def of_uv(settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that mean to uv what the settings mean to pip."""
    named = ((*_NAMES[option], value) for option, value in settings.items() if option in _NAMES)
    return {variable: separator.join(value.split()) for variable, separator, value in named}


def environment_of_uv(uv: str, settings: Mapping[str, str]) -> dict[str, str]:
    """That of uv, with pip's settings and a build of torch. Empty variables of uv remove settings.

    ``UV_TORCH_BACKEND=`` takes torch from where the other packages are.
    """
    variables = {**of_uv(settings), **os.environ}
    found = {name: value for name, value in variables.items() if value or name[:3] != "UV_"}
    return found if BACKEND in variables else with_torch_backend(uv, found)


def _is_installed_by(uv: str, arguments: list[str], variables: Mapping[str, str]) -> bool:
    options = ["--compile-bytecode"] if sys.dont_write_bytecode else []
    command = [uv, "pip", "install", "--python", sys.executable, *options, *arguments]
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    if wanted and (said := announcement(uv, wanted, variables)):
        sys.stdout.write(f"{said}\n")
    return _run(*command, env=variables) == 0


def _run(*command: str, env: Mapping[str, str] | None = None) -> int:
    sys.stdout.flush()
    return subprocess.run(command, env=env, check=False).returncode  # noqa: S603 - uv or pip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
