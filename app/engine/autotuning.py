"""Choices between ways to compute the same: each is timed where it runs, on the shapes at hand.

Which kernel is fastest depends on the processor, its threads and the shape, so no constant in the
code decides it. A choice is made when a shape is first met, and kept in a file for this processor.
"""

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from app.json_file import replace_file

logger = logging.getLogger(__name__)

_MIN_ROUNDS, _MAX_ROUNDS = 2, 7
_MAX_S = 0.03  # after which no further round of a choice begins, beyond the least number
_WORTH = 0.95  # of the time of the first way, which another must stay below

Run = Callable[[], object]


@dataclass(frozen=True)
class Choice:
    """The way that was chosen, and the seconds that each took."""

    way: str
    seconds: Mapping[str, float]


def size_of(number: int) -> int:
    """The power of two from ``number`` on: numbers of the same size share their choices."""
    return 1 << max(0, number - 1).bit_length()


def processor() -> str:
    """What the choices depend on, apart from shapes: processor, threads and torch."""
    names = [line for line in _cpu_lines() if line.startswith(("model name", "Hardware"))]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


class Tuner:
    """Chooses ways by name, shape and data type. For one thread.

    ``always`` names ways that are taken wherever they are among the alternatives, without timing.
    """

    def __init__(
        self, file: Path | None = None, *, is_on: bool = True, always: frozenset[str] = frozenset()
    ) -> None:
        self._file = file
        self._is_on = is_on
        self._always = always
        self._choices: dict[str, Choice] = {}
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
        """Whether any other way than the first may be taken."""
        return self._is_on or bool(self._always)

    @property
    def choices(self) -> Mapping[str, Choice]:
        """What was chosen so far, by what it is for."""
        return self._choices

    def fastest(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, ways: Mapping[str, Run]
    ) -> str:
        """The name of the fastest of these ways, as in ``choose``."""
        return self.choose(name, shape, dtype, ways).way

    def choose(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, ways: Mapping[str, Run]
    ) -> Choice:
        """The fastest of these ways; the first one, without times, if tuning is off.

        All are run a few times if the shape is new. They must not change what they read.
        """
        for way in ways:
            if way in self._always:
                return Choice(way, {})
        if not self._is_on:
            return Choice(next(iter(ways)), {})
        key = f"{name} {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
        known = self._choices.get(key)
        is_whole = known is not None and known.way in ways and ways.keys() <= known.seconds.keys()
        if known is None or not is_whole:
            known = self._choices[key] = _timed(ways)
            self._write()
        return known

    def _write(self) -> None:
        if self._file is None:
            return
        others = _read(self._file)
        others[processor()] = {**others.get(processor(), {}), **self._choices}
        try:
            _replace(self._file, others)
        except OSError as error:  # a choice that is not kept is made again
            logger.warning("the choices of kernels are not kept: %s", error)
            self._file = None


OFF = Tuner(is_on=False)


def _timed(ways: Mapping[str, Run]) -> Choice:
    """The shortest times of several rounds in turn, as neighbours lengthen some."""
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in ways}
    ends_s = time.perf_counter() + _MAX_S
    for num_rounds in range(1, _MAX_ROUNDS + 1):
        for way, run in ways.items():
            began_s = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - began_s)
        if num_rounds >= _MIN_ROUNDS and time.perf_counter() > ends_s:
            break
    seconds = {way: min(found) for way, found in times.items()}
    first, best = next(iter(ways)), min(seconds, key=seconds.__getitem__)
    return Choice(best if seconds[best] < _WORTH * seconds[first] else first, seconds)


def _read(file: Path) -> dict[str, dict[str, Choice]]:
    """All choices in the file by processor; none if it is missing or not such a file."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            of: {key: _parsed(choice) for key, choice in choices.items()}
            for of, choices in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _parsed(choice: Mapping[str, Any]) -> Choice:
    """Raises ``ValueError`` if the way that was chosen has no time."""
    way, seconds = choice["way"], {name: float(of) for name, of in choice["seconds"].items()}
    if seconds.get(way, 0.0) <= 0:
        raise ValueError(f"{way} has no time")
    return Choice(way, seconds)


def _replace(file: Path, choices: Mapping[str, Mapping[str, Choice]]) -> None:
    fields = {
        of: {key: {"way": one.way, "seconds": one.seconds} for key, one in found.items()}
        for of, found in choices.items()
    }
    replace_file(file, json.dumps(fields, indent=1).encode() + b"\n")


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
