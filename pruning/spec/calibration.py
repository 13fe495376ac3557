"""The text that a search is calibrated on: one source, or a mix of several by weight."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pruning.spec import InvalidSpec, refused

_Item = TypeVar("_Item")

MAX_CALIBRATION_TOKENS = 2**28  # a thousand times the paper's
MAX_SOURCES = 64


class Dataset(StrEnum):
    PROSE = "prose"  # the first three come with the product: they need no network
    CODE = "code"
    DOCUMENTATION = "documentation"
    WIKITEXT2 = "wikitext2"
    C4 = "c4"
    FILE = "file"
    SELF = "self"  # text sampled from the dense model


PACKAGED = (Dataset.PROSE, Dataset.CODE, Dataset.DOCUMENTATION)
DEFAULT = (Dataset.PROSE, Dataset.CODE)  # what a calibration mixes unless it names its text


class Sampling(StrEnum):
    ROWS = "rows"  # num_samples raw rows joined, however few windows that gives: the reference code
    WINDOWS = "windows"  # num_samples windows of seqlen tokens: what the paper says


@dataclass(frozen=True)
class CalibrationSpec:
    """One source: ``num_samples`` rows or windows, cut into windows of ``seqlen`` tokens."""

    dataset: Dataset
    sampling: Sampling = Sampling.WINDOWS
    num_samples: int = 32
    seqlen: int = 128
    seed: int = 0
    path: str | None = None  # of the text or jsonl file, for dataset "file"

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= 100_000:
            raise refused("calibration.num_samples", self.num_samples, "1 to 100000", "num_samples")
        if not 2 <= self.seqlen <= 1_000_000:
            raise refused("calibration.seqlen", self.seqlen, "2 to 1000000 tokens", "seqlen")
        if (num_tokens := self.num_samples * self.seqlen) > MAX_CALIBRATION_TOKENS:
            raise InvalidSpec(
                "calibration.num_samples",
                f"num_samples x seqlen is {num_tokens} tokens, more than the limit of "
                f"{MAX_CALIBRATION_TOKENS}; the paper uses 128 x 2048",
            )
        if not 0 <= self.seed < 2**32:
            raise refused("calibration.seed", self.seed, "0 to 2**32 - 1", "seed")
        if (self.dataset is Dataset.FILE) != (self.path is not None):
            raise InvalidSpec(
                "calibration.path",
                "dataset 'file' requires a path, and other data sets do not have one",
            )

    @property
    def parts(self) -> tuple["CalibrationSpec", ...]:
        return (self,)

    @property
    def domain(self) -> str:
        """The kind of text, under which its quality is reported: a file's name, or the data set."""
        return self.dataset.value if self.path is None else Path(self.path).stem

    def resolved(self, locate: Callable[[str], str]) -> "CalibrationSpec":
        """The same source with ``locate(path)`` as its path, if it has one."""
        return self if self.path is None else replace(self, path=locate(self.path))

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CalibrationMix:
    """Several sources, each with its own seed and sampling; ``num_samples`` is that of the mix.

    Each source gets its share of the samples by weight, by largest remainders, and at least one.
    Of equal remainders the first source wins.
    """

    sources: tuple[CalibrationSpec, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sources) == len(self.weights) <= MAX_SOURCES:
            raise InvalidSpec(
                "calibration", f"{len(self.sources)} sources: expected 1 to {MAX_SOURCES}"
            )
        for at, weight in enumerate(self.weights):
            if not 0 < weight < math.inf:  # false for NaN
                raise refused(
                    f"calibration.{at}.weight", weight, "a finite number above 0", "weight"
                )
        for name in ("seqlen", "num_samples"):
            self._check_equal(name)
        if len(self.sources) > self.num_samples:
            raise InvalidSpec(
                "calibration.0.num_samples",
                f"num_samples={self.num_samples} is too small for {len(self.sources)} sources: "
                "expected at least one sample per source",
            )
        texts = [(source.dataset, source.path) for source in self.sources]
        for at, text in enumerate(texts):
            if text in texts[:at]:  # held-out text of one would be calibration text of the other
                raise InvalidSpec(
                    f"calibration.{at}",
                    "this text is already in the mix: increase its weight instead",
                )

    def _check_equal(self, name: str) -> None:
        values = [getattr(source, name) for source in self.sources]
        for at, value in enumerate(values):
            if value != values[0]:
                raise InvalidSpec(
                    f"calibration.{at}.{name}",
                    f"{name}={value} differs from the first source's {values[0]}: all sources of a "
                    "mix must have the same value",
                )

    @property
    def num_samples(self) -> int:
        return self.sources[0].num_samples

    @property
    def seqlen(self) -> int:
        return self.sources[0].seqlen

    @property
    def parts(self) -> tuple[CalibrationSpec, ...]:
        """The sources with their shares of the samples."""
        shares = apportioned(self.num_samples, self.weights)
        return tuple(
            replace(source, num_samples=share)
            for source, share in zip(self.sources, shares, strict=True)
        )

    def resolved(self, locate: Callable[[str], str]) -> "CalibrationMix":
        """The same mix with ``locate(path)`` in place of every path."""
        return replace(self, sources=_each(self.sources, lambda source: source.resolved(locate)))

    def to_wire(self) -> list[dict[str, Any]]:
        pairs = zip(self.sources, self.weights, strict=True)
        return [{**asdict(source), "weight": weight} for source, weight in pairs]


Calibration = CalibrationSpec | CalibrationMix


def default_calibration(**settings: object) -> CalibrationMix:
    """Packaged prose and code in equal parts, with these settings of ``CalibrationSpec``.

    Raises ``InvalidSpec``.
    """
    sources = tuple(_source({**settings, "dataset": dataset}) for dataset in DEFAULT)
    return CalibrationMix(sources, (1.0,) * len(sources))


def calibration_from(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Calibration:
    """Inverse of ``to_wire``, also after JSON; missing fields take their defaults.

    One source without a data set is the default mix with its settings. Raises ``InvalidSpec``.
    """
    if isinstance(data, Mapping):
        settings = _settings(data)
        is_named = settings.pop("dataset", None) is not None
        return _source(data) if is_named else default_calibration(**settings)
    weights = tuple(float(source.get("weight", 1)) for source in data)
    return CalibrationMix(_each(data, _source), weights)


def apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` divided into whole shares by weight, by largest remainders, each at least 1."""
    largest = max(weights)  # the sum of all weights may overflow
    scale = math.fsum(weight / largest for weight in weights)
    quotas = [total * (weight / largest) / scale for weight in weights]
    shares = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda at: shares[at] - quotas[at])
    for at in by_remainder[: total - sum(shares)]:
        shares[at] += 1
    while 0 in shares:
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] = 1
    return shares


def _source(data: Mapping[str, Any]) -> CalibrationSpec:
    settings = _settings(data)
    if settings.get("dataset") is None:
        names = ", ".join(Dataset)
        raise InvalidSpec(
            "calibration.dataset", f"a text of the mix has no dataset: expected one of {names}"
        )
    return CalibrationSpec(**settings)


def _settings(data: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"dataset": Dataset, "sampling": Sampling}
    enums = {name: kinds[name](data[name]) for name in kinds if data.get(name) is not None}
    return {name: value for name, value in data.items() if name != "weight"} | enums


def _each(
    items: Sequence[_Item], make: Callable[[_Item], CalibrationSpec]
) -> tuple[CalibrationSpec, ...]:
    """``make`` of every source. The parameter of an error has the index, as calibration.1.path."""
    sources = []
    for at, item in enumerate(items):
        try:
            sources.append(make(item))
        except InvalidSpec as error:
            param = error.param.replace("calibration", f"calibration.{at}", 1)
            raise InvalidSpec(param, str(error)) from error
    return tuple(sources)
