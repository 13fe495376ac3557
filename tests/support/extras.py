"""Processes that see only what ``pip install`` brings with some extras."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    files,
    packages_distributions,
    requires,
)
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.pages import ROOT
from tests.support.processes import environment

_OURS = "sleb-serve"
_HIDE = """\
import json, sys

class Others:
    def __init__(self, finder, hidden):
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        spec = self._finder.find_spec(name, path, target)
        if spec is None or name not in self._hidden:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or ())]
        of_pip = "/site-packages/" + name.replace(".", "/")  # and not a copy that a package has
        return None if any(of_pip in place for place in places) else spec

    def __getattr__(self, name):
        return getattr(self._finder, name)

hidden = frozenset(json.loads(sys.argv.pop(1)))
sys.meta_path[:] = [Others(finder, hidden) for finder in sys.meta_path]
"""


def run_with(
    extras: Iterable[str], code: str, directory: Path
) -> "subprocess.CompletedProcess[str]":
    """Run the code where only packages of the base and of these extras can be imported."""
    return subprocess.run(
        [sys.executable, "-c", _HIDE + code, json.dumps(sorted(hidden_with(extras)))],
        cwd=directory,
        env={**environment(directory / "data"), "SLEB_VERIFY": "inline"},
        capture_output=True,
        text=True,
        check=False,
    )


def hidden_with(extras: Iterable[str]) -> set[str]:
    """Modules of those packages here that these extras do not bring."""
    brought = packages_with(extras) | {_OURS}
    hidden = set()
    for module, owners in _owners().items():
        others = {owner for owner in owners if canonicalize_name(owner) not in brought}
        if others == set(owners):
            hidden.add(module)
        elif others:  # they share a folder
            hidden |= _modules(others) - _modules(set(owners) - others)
    return hidden


@cache
def _owners() -> Mapping[str, Sequence[str]]:
    """The packages that each module here is of, which takes long to find out."""
    return packages_distributions()


def _modules(names: Iterable[str]) -> set[str]:
    """The folders of these packages, as modules."""
    return {
        ".".join(folder.parts)
        for name in names
        for file in files(name) or ()
        if file.suffix == ".py"
        for folder in file.parents
    }


def packages_with(extras: Iterable[str]) -> set[str]:
    """The packages here that pip installs beside this one."""
    installed = {canonicalize_name(each.name) for each in distributions()}
    return {name for name, _ in _closure((_OURS, tuple(extras)))} & installed - {_OURS}


def _closure(wanted: tuple[str, tuple[str, ...]]) -> set[tuple[str, tuple[str, ...]]]:
    found, left = {wanted}, [wanted]
    while left:
        for one in _required(*left.pop()):
            if one not in found:
                found.add(one)
                left.append(one)
    return found


def _ours() -> list[str]:
    """As pyproject.toml has them, which may be newer than what was installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [
        f"{requirement}; extra == '{name}'" if ";" not in requirement else requirement
        for name, requirements in project["optional-dependencies"].items()
        for requirement in requirements
    ]
    return [*project["dependencies"], *optional]


def _required(name: str, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    try:
        listed = _ours() if name == _OURS else requires(name) or ()
    except PackageNotFoundError:  # for another platform
        return
    for requirement in map(Requirement, listed):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
