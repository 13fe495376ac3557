"""The quality on each domain of text as tables: at one depth, and after each removal.

A wide table has a row for each domain, and a narrow one a row for each model on it.
"""

from collections.abc import Iterator, Sequence

from pruning.checkpoints.trajectory import NONE, Cells, short
from pruning.evaluation.quality import (
    MIN_WINDOWS,
    Compared,
    DomainAtDepth,
    DomainQuality,
    Interval,
)

Table = tuple[Cells, list[Cells]]  # headings, and the cells of each row
_MEASURED = ("pruned", "pruned × dense", "repaired", "repaired × dense", "recovered")
_HEALED = ("healed", "healed × dense", "healed: recovered", "control × dense")
NARROW = ("", "perplexity", "× dense", "recovered")
INTERVALS = (
    "95 % intervals in parentheses hold however many windows are added; those of × dense are from "
    "differences to the dense model on the same windows."
)


def depth_table(domains: Sequence[DomainQuality], num_removed: int) -> Table:
    """The quality after so many removals, with a row for each domain."""
    depths = [domain.at_depth(num_removed) for domain in domains]
    return _without_empty(
        ("domain", "dense", *_MEASURED, *_HEALED),
        [(each.domain, with_interval(each.dense), *_cells(each)) for each in depths],
    )


def narrow_table(domains: Sequence[DomainAtDepth]) -> Table:
    """The quality at one depth: each domain with the dense, the pruned and the repaired model."""
    return _without_empty(NARROW, [row for domain in domains for row in _narrow_rows(domain)])


def domain_table(domain: DomainQuality) -> Table:
    """The quality on one domain, with a row for each number of removed blocks from 1."""
    return _without_empty(
        ("removed", *_MEASURED, *_HEALED[:-1]),
        [
            (str(number), *_cells(domain.at_depth(number))[:-1])
            for number in range(1, len(domain.raw) + 1)
        ],
    )


def explained(domains: Sequence[DomainQuality | DomainAtDepth]) -> Iterator[str]:
    """Name the text of each domain, and say what the columns mean."""
    for domain in domains:
        yield text_line(domain.domain, domain.text, domain.digest)
    at_depth = [
        domain.at_depth(len(domain.raw)) if isinstance(domain, DomainQuality) else domain
        for domain in domains
    ]
    if any(domain.dense.low is not None for domain in at_depth):
        yield INTERVALS
    if few := [domain.domain for domain in at_depth if domain.dense.low is None]:
        yield too_few(few)
    if any(domain.repaired for domain in domains):
        yield "recovered: share of the added loss that repair recovers."
    if any(domain.healed for domain in domains):
        yield "healed: trained to match the dense model's predictions, after any repair."
    if any(domain.control for domain in domains):
        yield "control: the dense model after the same training, which has no loss to recover."


def too_few(texts: Sequence[str]) -> str:
    """What is said of texts without intervals."""
    return f"no intervals on {', '.join(texts)}: at least {MIN_WINDOWS} windows are needed"


def text_line(name: str, text: str, digest: str) -> str:
    return f"{name}: {text} (sha256 of the token ids {digest[:12]})."


def with_interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return short(interval.value)
    return f"{short(interval.value)} ({short(interval.low)} to {short(interval.high)})"


def _narrow_rows(domain: DomainAtDepth) -> Iterator[Cells]:
    yield domain.domain, NONE, NONE, NONE
    yield "  dense", with_interval(domain.dense), NONE, NONE
    for name, model, share in (
        ("pruned", domain.raw, None),
        ("repaired", domain.repaired, domain.recovered),
        ("healed", domain.healed, domain.healed_share),
        ("control", domain.control, None),
    ):
        if model is not None:
            yield f"  {name}", *_compared(model), _share(share)


def _cells(domain: DomainAtDepth) -> Cells:
    """Those of ``_MEASURED`` and ``_HEALED``."""
    repaired = (*_compared(domain.repaired), _share(domain.recovered))
    healed = (*_compared(domain.healed), _share(domain.healed_share))
    return *_compared(domain.raw), *repaired, *healed, _compared(domain.control)[1]


def _compared(compared: Compared | None) -> tuple[str, str]:
    if compared is None:
        return NONE, NONE
    return short(compared.perplexity), with_interval(compared.ratio)


def _share(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def _without_empty(headings: Cells, rows: Sequence[Cells]) -> Table:
    """Leave out the columns that have nothing in any row."""
    shown = [at for at in range(len(headings)) if any(row[at] != NONE for row in rows)]
    cells = [tuple(row[at] for at in shown) for row in rows]
    return tuple(headings[at] for at in shown), cells
