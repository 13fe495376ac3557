"""Autotuning: which of several kernels that compute the same is the fastest where they run.

That depends on the processor, its threads and the shape, so no constant in the code decides it.
Kernels are timed between the steps of the engine, never in one. A step only looks up what is known.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import inf
from pathlib import Path
from threading import Lock
from typing import Any, Self

import llvmlite
import numba
import torch
from filelock import FileLock, Timeout

from pruning.records import (
    InvalidRecord,
    check_record,
    parse_record,
    read_stored,
    reason_of,
    replace_file,
    sendable,
)

logger = logging.getLogger(__name__)

_ENGINE = Path(__file__).parent
_NUM_ROUNDS = 5  # of timed runs, after one that is not timed
_WORTH = 0.9  # of the time of the first kernel, which another must stay below
_SAME = 1.1  # times the shortest time of a kernel: a firm choice has met it twice as closely
_HOPELESS = 4.0  # times the fastest: such a kernel is run no more than twice
_MAX_SECTIONS = 16  # of the file: a processor and versions each
_LOCK_TIMEOUT_S = 5.0
_CONTEXTS = (64, 256, 1024, 4096)  # tokens: sizes of contexts that share their choices
_ENOUGH_S = 0.2  # of timed runs, after which two rounds are enough

Run = Callable[[], object]
Times = Mapping[str, Sequence[float]]  # seconds of the runs of each kernel


@dataclass(frozen=True)
class Choice:
    """The fastest kernel, and the shortest time of each in seconds."""

    kernel: str
    seconds: Mapping[str, float]
    is_firm: bool = True  # its times were met twice; others are measured again


@dataclass(frozen=True)
class Trial:
    """Kernels to be timed. ``prepare`` makes a run of each, on data like that of a step."""

    key: str
    prepare: Callable[[], Mapping[str, Run]]


def size_of(number: int) -> int:
    """The power of two from ``number`` on: numbers of the same size share their choices."""
    return 1 << max(0, number - 1).bit_length()


def context_of(num_tokens: int) -> int:
    """The size of a context that shares its choices with ``num_tokens``."""
    return next((size for size in _CONTEXTS if size >= num_tokens), _CONTEXTS[-1])


def sizes_to(largest: int) -> list[int]:
    """All sizes of numbers from 1 to ``largest``."""
    return [1 << power for power in range(size_of(largest).bit_length())]


def contexts_to(largest: int) -> list[int]:
    """All sizes of contexts up to that of ``largest`` tokens."""
    return [size for size in _CONTEXTS if size <= context_of(largest)]


def key_of(name: str, like: torch.Tensor, *numbers: int) -> str:
    """The key of a choice: all numbers that decide it, with type and device of ``like``."""
    shape = "x".join(map(str, numbers))
    return f"{name} {shape} {str(like.dtype).removeprefix('torch.')} {_device_name(like.device)}"


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor() -> str:
    """What all choices depend on: the processor, the threads, and the versions of the code."""
    capability, num_threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{cpu_name()}, {capability}, {num_threads} threads, versions {versions_digest()}"


@cache
def versions_digest(folder: Path = _ENGINE) -> str:
    """A digest of the source in a folder and of the versions of what runs it."""
    digest = hashlib.sha256()
    versions = (platform.python_version(), numba.__version__, llvmlite.__version__)
    digest.update(repr((*versions, torch.__version__)).encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line for line in lines if line.startswith(("model name", "Hardware"))]
    return names[0].partition(":")[2].strip() if names else platform.processor()


class Autotuner:
    """Knows the fastest kernels by key. Safe from any thread.

    ``always`` names kernels that are taken wherever they are among the alternatives.
    """

    def __init__(
        self, file: Path | None = None, *, is_on: bool = True, always: frozenset[str] = frozenset()
    ) -> None:
        self._file = file
        self._is_on = is_on
        self._always = always
        self._lock = Lock()
        self._choices: dict[str, Choice] = {}
        self._is_changed = False  # since they were kept
        if file is not None and is_on:
            self._choices = _read(file).get(processor(), {})

    @classmethod
    def of(cls, setting: str, data_dir: Path) -> Self:
        """For a setting: ``on`` keeps the choices in this directory, ``off``, or a file."""
        if setting == "off":
            return cls(is_on=False)
        return cls(data_dir / "tuning.json" if setting == "on" else Path(setting))

    @property
    def chooses(self) -> bool:
        """Whether any other kernel than the first may be taken."""
        return self._is_on or bool(self._always)

    @property
    def needs_times(self) -> bool:
        """Whether kernels are chosen by their times."""
        return self._is_on and not self._always

    @property
    def choices(self) -> Mapping[str, Choice]:
        """What is known, by key."""
        with self._lock:
            return dict(self._choices)

    def kernel(self, key: str, kernels: Collection[str]) -> str:
        """The fastest of these kernels, as far as it is known: the first one otherwise."""
        if self._always:
            for name in kernels:
                if name in self._always:
                    return name
        known = self._choices.get(key)
        if known is None:
            return next(iter(kernels))
        if known.kernel in kernels:
            return known.kernel
        return _fastest({name: known.seconds.get(name, inf) for name in kernels})

    def known(self, key: str) -> Choice | None:
        """This choice, if it was made."""
        return self._choices.get(key)

    def record(self, key: str, choice: Choice) -> None:
        """Take a choice from now on. It is kept by ``save``."""
        with self._lock:
            self._choices = {**self._choices, key: choice}
            self._is_changed = True

    def save(self) -> None:
        """Keep new choices in the file, beside those of other processes. Waits for the disk."""
        with self._lock:
            is_changed, self._is_changed = self._is_changed, False
        if self._file is None or not is_changed:
            return
        try:
            with FileLock(self._file.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S):
                sections = _read(self._file)
                ours = {**sections.pop(processor(), {}), **self.choices}
                others = dict([*sections.items()][-(_MAX_SECTIONS - 1) :])
                kept = {
                    section: {key: asdict(choice) for key, choice in choices.items()}
                    for section, choices in {**others, processor(): ours}.items()
                }
                replace_file(self._file, json.dumps(kept, indent=1).encode() + b"\n")
        except (OSError, Timeout) as error:  # what is not kept is measured again
            logger.warning("kernel choices cannot be saved: %s", error)
            self._file = None


OFF = Autotuner(is_on=False)


def timed(
    trial: Trial, clock: Callable[[], float] = time.perf_counter
) -> Generator[None, None, Times]:
    """Time the kernels of a trial in turn. The generator pauses after each run."""
    runs = dict(trial.prepare())
    times: dict[str, list[float]] = {name: [] for name in runs}
    total_s = 0.0
    for number in range(_NUM_ROUNDS + 1):
        for name, run in runs.items():
            began_s = clock()
            run()
            seconds = clock() - began_s
            total_s += seconds
            times[name].append(seconds)
            yield
        if number >= 2 and total_s > _ENOUGH_S:
            break
        if number == 1:  # one run alone may have waited for a core
            fastest_s = min(map(min, times.values()))
            runs = {n: run for n, run in runs.items() if min(times[n]) <= _HOPELESS * fastest_s}
    return {name: of_kernel[1:] or of_kernel for name, of_kernel in times.items()}


def chosen(times: Times, before: Choice | None = None) -> Choice:
    """The choice by the shortest times, with those of a choice before. What else runs on a machine
    can only add to them."""
    known = before.seconds if before is not None else {}
    shortest = {name: min([*own, known.get(name, inf)]) for name, own in times.items()}
    compared = next(iter(shortest)), min(shortest, key=shortest.__getitem__)
    is_firm = all(sorted(times[name])[:2][-1] <= _SAME * shortest[name] for name in compared)
    return Choice(_fastest(shortest), shortest, is_firm)


def _fastest(seconds: Mapping[str, float]) -> str:
    """The fastest kernel: the first one, unless another is faster by more than noise."""
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < _WORTH * seconds[first] else first


def _read(file: Path) -> dict[str, dict[str, Choice]]:
    """All choices in the file by processor, without those that are broken."""
    try:
        sections = parse_record(read_stored(file))
    except FileNotFoundError:
        return {}
    except (OSError, InvalidRecord) as error:
        logger.warning(
            "cannot read kernel choices, measuring again: %s: %s", file, reason_of(error)
        )
        return {}
    by_section: dict[str, dict[str, Choice]] = {}
    num_broken = 0
    for section, choices in sections.items():
        of_section = by_section.setdefault(sendable(section), {})
        for key, fields in choices.items() if isinstance(choices, dict) else [("", choices)]:
            try:
                of_section[sendable(key)] = _parsed(fields)
            except (InvalidRecord, TypeError, KeyError):
                num_broken += 1
    if num_broken:
        logger.warning("ignored %d damaged kernel choices in %s", num_broken, file)
    return by_section


def _parsed(fields: Mapping[str, Any]) -> Choice:
    """Raises ``InvalidRecord``, ``TypeError`` or ``KeyError``."""
    choice = Choice(fields["kernel"], fields["seconds"], fields.get("is_firm", False))
    check_record(choice)
    if choice.kernel not in choice.seconds or min(choice.seconds.values()) <= 0:
        raise InvalidRecord(f"{choice.kernel} has no time")
    return choice
