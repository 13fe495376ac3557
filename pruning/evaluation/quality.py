"""The measured quality of a pruned model and of its dense parent, as data.

``assess.py`` measures it, and the manifest of the checkpoint records it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from pruning.confidence import MIN_DEGREES, reach
from pruning.evaluation.estimate import UNKNOWN_STRATA, Strata, estimate
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.results import Extent, ProbeComparison, Sample
from pruning.plural import counted
from pruning.records import read_record
from pruning.removal import Losses, paired_gaps

Shares = Mapping[str, int]  # of each domain in a text, in any unit

MIN_WINDOWS = MIN_DEGREES + 1  # for an interval
MAX_NATS = 700.0  # exp of a larger loss, as of a broken model, overflows a float


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval of 95 % confidence; None if it is unknown.

    Intervals hold however often more windows are added, see ``pruning.confidence``.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        ends = "" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{ends}"


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it was measured on: text, windows, and their length."""

    text: str
    num_windows: int
    seqlen: int  # tokens of a window; all but the first are predicted
    loss: float  # mean nats per predicted token
    perplexity: float  # exp of it
    digest: str  # of the token ids: equal ones make two perplexities comparable
    interval: Interval  # of the perplexity on text like this
    losses: tuple[float, ...]  # mean nats per predicted token of each window
    ratio: Interval | None = None  # to the dense model on the same windows, where it is known

    def against(self, dense: "Perplexity") -> "Perplexity":
        """With the ratio to the dense model, if that was measured on the same windows."""
        if dense.digest != self.digest:
            return self
        return replace(self, ratio=ratio_of(dense.losses, self.losses))


@dataclass(frozen=True)
class Measured:
    """The loss of one model on the windows of a domain: mean nats per predicted token.

    ``standard_error`` is that of the mean of the differences to the dense model, window by window;
    for the dense model, that of its own mean. None with a single window or a broken model.
    """

    loss: float
    standard_error: float | None
    degrees: int | None = None  # of freedom of the error; None: one less than the windows

    @classmethod
    def of_dense(cls, losses: Losses, strata: Strata = UNKNOWN_STRATA) -> "Measured":
        found = estimate(losses, strata)
        return cls(found.mean, found.error, found.degrees)

    @classmethod
    def against(cls, dense: Losses, losses: Losses, strata: Strata = UNKNOWN_STRATA) -> "Measured":
        """The model with ``losses`` on the windows of the dense model, which are of ``strata``."""
        gap = estimate(paired_gaps(losses, dense), strata)
        return cls(fmean(losses), gap.error, gap.degrees)

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)


@dataclass(frozen=True)
class Compared:
    """A perplexity, and its ratio to that of the dense model on the same windows."""

    perplexity: float
    ratio: Interval


@dataclass(frozen=True)
class DomainAtDepth:
    """The quality of one depth of a removal order on a domain.

    ``recovered`` is the share of the lost nats that the repair gives back, if any were lost, and
    ``healed_share`` that of repair and healing. ``control`` is the dense model after the training
    that healed this one.
    """

    domain: str
    text: str
    digest: str
    dense: Interval
    raw: Compared
    repaired: Compared | None  # None without a repair
    recovered: float | None = None
    healed: Compared | None = None
    control: Compared | None = None
    healed_share: float | None = None

    def unrepaired(self) -> "DomainAtDepth":
        """What is true of the same blocks without repair and healing."""
        return DomainAtDepth(self.domain, self.text, self.digest, self.dense, self.raw, None)


@dataclass(frozen=True)
class DomainQuality:
    """Losses on the held-out windows of one domain, which are the same windows for every model.

    ``raw`` and ``repaired`` are for 1, 2 ... removed blocks. ``repaired`` is empty if nothing was
    repaired, and None at a depth that is better without repair. ``healed`` is empty without a
    healing, and None at a depth that it did not train. ``control`` is the dense model after the
    training that healed them.
    """

    domain: str
    source: str  # the text, in words
    num_windows: int
    seqlen: int  # tokens of a window; all but the first are predicted
    digest: str  # of the token ids: perplexities of equal digests can be compared
    dense: Measured
    raw: tuple[Measured, ...]
    repaired: tuple[Measured | None, ...] = ()
    healed: tuple[Measured | None, ...] = ()
    control: Measured | None = None

    def up_to(self, num_removed: int) -> "DomainQuality":
        """The same of so many removals."""
        return replace(
            self,
            raw=self.raw[:num_removed],
            repaired=self.repaired[:num_removed],
            healed=self.healed[:num_removed],
        )

    def has_depths(self, num_removed: int) -> bool:
        """Whether there is one loss for each of 1, 2 ... removals, and windows for their errors."""
        measured = (self.dense, *self.raw, *self.repaired, *self.healed, self.control)
        has_errors = any(each is not None and each.standard_error is not None for each in measured)
        are_whole = {len(self.repaired), len(self.healed)} <= {0, num_removed}
        is_enough = self.num_windows >= (2 if has_errors else 1)
        return is_enough and len(self.raw) == num_removed and are_whole

    @property
    def text(self) -> str:
        """Text, windows and window length, as every perplexity states them."""
        return text_of(self.source, self.num_windows, self.seqlen)

    def raw_after(self, num_removed: int) -> Measured:
        return self.raw[num_removed - 1] if num_removed else self.dense

    def repaired_after(self, num_removed: int) -> Measured | None:
        """None for the dense model, and for a depth without repair."""
        return self.repaired[num_removed - 1] if num_removed and self.repaired else None

    def healed_after(self, num_removed: int) -> Measured | None:
        """None for the dense model, and for a depth without healing."""
        return self.healed[num_removed - 1] if num_removed and self.healed else None

    def served_after(self, num_removed: int) -> Measured:
        """The model as it is served: healed or repaired, if it was."""
        return self.healed_after(num_removed) or self.unhealed_after(num_removed)

    def unhealed_after(self, num_removed: int) -> Measured:
        """The model before its healing: repaired, if it was."""
        return self.repaired_after(num_removed) or self.raw_after(num_removed)

    def ratio(self, measured: Measured) -> Interval:
        """The perplexity divided by that of the dense model on the same windows."""
        if measured is self.dense:
            return Interval(1.0, 1.0, 1.0)  # its error is that of its mean
        nats = measured.loss - self.dense.loss
        return _exp_interval(nats, measured.standard_error, self.degrees(measured))

    def margin_after(self, num_removed: int) -> float | None:
        """How far the interval of the ratio reaches, on the scale of the loss, as it is served.

        None if it is unknown; infinite for a broken model.
        """
        served = self.served_after(num_removed)
        if not math.isfinite(served.loss):
            return math.inf
        degrees = self.degrees(served)
        if served.standard_error is None or degrees < MIN_DEGREES:
            return None
        return reach(degrees) * served.standard_error

    def degrees(self, measured: Measured) -> int:
        """The degrees of freedom of its error."""
        return self.num_windows - 1 if measured.degrees is None else measured.degrees

    def dense_perplexity(self) -> Interval:
        """The perplexity of the dense model on text like this one."""
        error = self.dense.standard_error
        return _exp_interval(self.dense.loss, error, self.degrees(self.dense), least_nats=0.0)

    def recovered_after(self, num_removed: int) -> float | None:
        """The share of the lost nats that repair gives back; None if nothing was lost."""
        return self._recovered(num_removed, self.unhealed_after(num_removed))

    def healed_share(self, num_removed: int) -> float | None:
        """The share that repair and healing give back; None if nothing was lost, or not healed."""
        healed = self.healed_after(num_removed)
        return None if healed is None else self._recovered(num_removed, healed)

    def _recovered(self, num_removed: int, measured: Measured) -> float | None:
        raw = self.raw_after(num_removed)
        lost = raw.loss - self.dense.loss
        return (raw.loss - measured.loss) / lost if lost > 0 else None

    def at_depth(self, num_removed: int) -> DomainAtDepth:
        """The quality after so many removals."""
        repaired, healed = self.repaired_after(num_removed), self.healed_after(num_removed)
        return DomainAtDepth(
            domain=self.domain,
            text=self.text,
            digest=self.digest,
            dense=self.dense_perplexity(),
            raw=self._compared(self.raw_after(num_removed)),
            repaired=None if repaired is None else self._compared(repaired),
            recovered=None if repaired is None else self.recovered_after(num_removed),
            healed=None if healed is None else self._compared(healed),
            control=None if healed is None or not self.control else self._compared(self.control),
            healed_share=None if healed is None else self.healed_share(num_removed),
        )

    def _compared(self, measured: Measured) -> Compared:
        return Compared(measured.perplexity, self.ratio(measured))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DomainQuality":
        """Parse JSON of ``asdict``. In older records ``healed`` is that of all removals."""
        healed = data.get("healed") or ()
        if isinstance(healed, Mapping):
            healed = [*(None for _ in data["raw"][1:]), healed]
        return read_record(cls, {**data, "healed": healed})


@dataclass(frozen=True)
class Quantized:
    """The pruned model with quantized weights of its blocks."""

    weights: Literal["int8", "int4", "w8a8"]
    perplexity: float  # on the same held-out windows as the other perplexities


@dataclass(frozen=True)
class Quality:
    """The cost of the removals. Sequences are for 0, 1, 2 ... removed blocks, dense first."""

    losses: tuple[float, ...]  # nats per token on the calibration windows
    perplexities: tuple[float, ...] = ()  # as served, on held-out windows of the calibration's text
    evaluated_on: str = ""  # text, windows and window length of the perplexities
    probe: ProbeComparison | None = None  # of the dense model and of all removals
    warnings: tuple[str, ...] = ()  # of the quality gate
    quantized: Quantized | None = None
    tasks: tuple[PairedTask, ...] = ()  # of all removals, as served; not in old manifests
    domains: tuple[DomainQuality, ...] = ()  # empty if not evaluated, and in old manifests
    raw_perplexities: tuple[float, ...] = ()  # perplexities without repair; not in old manifests
    extent: Extent | None = None  # None if the calibration decided the number of windows
    samples: tuple[Sample, ...] = ()  # of all removals, as served; not in old manifests

    @property
    def num_removed(self) -> int:
        return len(self.losses) - 1

    @property
    def seqlen(self) -> int | None:
        """Tokens of a held-out window; None if no text was measured."""
        return self.domains[0].seqlen if self.domains else None

    def up_to(self, num_removed: int) -> "Quality":
        """The same of so many removals. All that is known of the deepest model alone is left out
        if that is another one.
        """
        if num_removed == self.num_removed:
            return self
        size = num_removed + 1
        return Quality(
            losses=self.losses[:size],
            perplexities=self.perplexities[:size],
            evaluated_on=self.evaluated_on,
            domains=tuple(each.up_to(num_removed) for each in self.domains),
            raw_perplexities=self.raw_perplexities[:size],
            extent=self.extent,
        )

    def has_depths(self, num_removed: int) -> bool:
        """Whether each sequence that is not empty has one value for each number of removals."""
        curves = (self.perplexities, self.raw_perplexities)
        return (
            len(self.losses) == num_removed + 1
            and all(len(curve) in (0, num_removed + 1) for curve in curves)
            and all(each.has_depths(num_removed) for each in self.domains)
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Quality":
        """Parse JSON. Fields that older releases did not write may be missing; theirs of tasks
        did not say which answers were right.
        """
        domains = tuple(map(DomainQuality.from_dict, data.get("domains", ())))
        known = {name: value for name, value in data.items() if name != "zero_shot"}
        return read_record(cls, {**known, "domains": domains})


def perplexity_of(loss: float) -> float:
    """exp of nats per token, limited to what a float can hold."""
    return math.exp(min(loss, MAX_NATS))


def interval_of(losses: Losses) -> Interval:
    """The perplexity on text like these windows."""
    found = estimate(losses)
    return _exp_interval(found.mean, found.error, found.degrees, least_nats=0.0)


def ratio_of(dense: Losses, losses: Losses) -> Interval:
    """The perplexity divided by that of the dense model, from losses on the same windows."""
    gap = estimate(paired_gaps(losses, dense))
    return _exp_interval(gap.mean, gap.error, gap.degrees)


def text_of(source: str, num_windows: int, seqlen: int) -> str:
    return f"{source}, {counted(num_windows, 'window')} of {seqlen} tokens"


def _exp_interval(
    nats: float, error: float | None, degrees: int, least_nats: float = -math.inf
) -> Interval:
    """exp of a mean over windows and of the ends of its interval.

    With too few degrees of freedom the interval is unknown. A loss has at least ``least_nats``.
    """
    if error is None or degrees < MIN_DEGREES:
        return Interval(perplexity_of(nats), None, None)
    margin = reach(degrees) * error
    ends = max(least_nats, nats - margin), nats + margin
    return Interval(perplexity_of(nats), *map(perplexity_of, ends))


def overall_ratio(
    domains: Sequence[DomainQuality], shares: Shares, num_removed: int
) -> Interval | None:
    """The ratio of the model as it is served, on a text with these shares of the domains.

    The degrees of freedom are those of Welch and Satterthwaite. None without domains.
    """
    if not domains:
        return None
    total = sum(shares[domain.domain] for domain in domains)
    parts = [
        (shares[each.domain] / total, each, each.served_after(num_removed)) for each in domains
    ]
    nats = sum(share * (served.loss - each.dense.loss) for share, each, served in parts)
    variances = [
        (share * served.standard_error) ** 2
        for share, _, served in parts
        if served.standard_error is not None
    ]
    of_parts = [each.degrees(served) for _, each, served in parts]
    if len(variances) < len(parts) or min(of_parts) < MIN_DEGREES:
        return Interval(perplexity_of(nats), None, None)
    below = sum(part**2 / each for part, each in zip(variances, of_parts, strict=True))
    degrees = int(sum(variances) ** 2 / below) if below else sum(of_parts)
    return _exp_interval(nats, math.sqrt(sum(variances)), max(MIN_DEGREES, degrees))
