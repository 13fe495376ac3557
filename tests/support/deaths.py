"""A process of a worker that is killed at a named call of the code under test.

A test writes where, in a file for the job, and the next process that runs the job takes the file.
"""

import importlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Any


class When(StrEnum):
    BEFORE = "before"
    AFTER = "after"
    HALF_WRITTEN = "half written"  # of a function that writes the file of its second argument


@dataclass(frozen=True)
class Death:
    """At the call of that ``number`` of ``call``, as in ``module:Class.method``."""

    call: str
    number: int = 1
    when: When = When.BEFORE
    takes_parent: bool = False  # the process that holds the lease is killed first

    @property
    def name(self) -> str:
        return f"{self.when} {self.call} {self.number}"


def plan_death(data_dir: Path, job_id: str, death: Death) -> None:
    _file(data_dir, job_id).write_text(json.dumps(asdict(death)))


def set_death(data_dir: Path, job_id: str) -> None:
    """Prepare the death of this process, if one is planned for it."""
    file = _file(data_dir, job_id)
    if not file.exists():
        return
    found = json.loads(file.read_text())
    file.unlink()
    kill_at(Death(**{**found, "when": When(found["when"])}))


def kill_at(death: Death) -> None:
    """Kill this process there."""
    module, _, path = death.call.partition(":")
    *owners, name = path.split(".")
    owner: Any = reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, _deadly(getattr(owner, name), death))


def _deadly(function: Callable[..., Any], death: Death) -> Callable[..., Any]:
    num_calls = 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        is_it = num_calls == death.number
        if is_it and death.when is When.BEFORE:
            _die(death)
        result = function(*given, **named)
        if is_it and death.when is When.HALF_WRITTEN:
            os.truncate(given[1], Path(given[1]).stat().st_size // 2)
        if is_it:
            _die(death)
        return result

    return call


def _die(death: Death) -> None:
    if death.takes_parent:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _file(data_dir: Path, job_id: str) -> Path:
    return data_dir / f"{job_id}.death"
