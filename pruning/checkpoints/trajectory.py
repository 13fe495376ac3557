"""What every removal cost, round by round: the rows behind each table of a pruning run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pruning.checkpoints.store import Manifest
from pruning.evaluation.perplexity import MAX_NATS
from pruning.evaluation.quality import Quality
from pruning.removal import Removal
from pruning.spec.prune import Metric, PruneSpec

Cells = tuple[str, ...]
NONE = "-"
_MARGINS: Mapping[Metric, str] = MappingProxyType(
    {
        Metric.COSINE: "by how much more the runner-up changes its input, as 1 - cosine",
        Metric.ONE_SHOT: "nats by which the dense model is worse without the runner-up",
        Metric.SLEB: "nats by which the runner-up was worse",
    }
)


@dataclass(frozen=True)
class Row:
    """The model after some removals; what its manifest and its removals do not say is None."""

    num_removed: int
    num_blocks: int  # that are left
    block: int | None  # the last that went
    loss: float  # on the calibration windows, nats per predicted token
    perplexity: float | None  # on held-out windows
    ratio: float  # to the dense perplexity, held-out if there is one, else on calibration windows
    margin: float | None  # by which the runner-up was worse, in nats or as the metric has it
    margin_error: float | None  # its standard error
    num_candidates: int | None  # of the round
    num_full: int | None  # candidates that were evaluated on every window


def rows(manifest: Manifest, removals: Iterable[Removal] = ()) -> tuple[Row, ...]:
    """Dense first, then one for each removed block."""
    of_block = {removal.block: removal for removal in removals}
    dense = _row(manifest, 0, None)
    return dense, *(
        _row(manifest, step, of_block.get(block))
        for step, block in enumerate(manifest.removed_blocks, start=1)
    )


def calibration_perplexities(manifest: Manifest) -> list[float]:
    """exp of the calibration losses, dense first, as far as a float goes."""
    return [math.exp(min(loss, MAX_NATS)) for loss in manifest.quality.losses]


def table(rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """Headings, and the cells of each row, without the columns that would be empty."""
    texts = {heading: [cell(row) for row in rows] for heading, cell in _COLUMNS.items()}
    if all(row.num_full == row.num_candidates for row in rows):
        del texts["in full"]
    told = {name: cells for name, cells in texts.items() if any(cell != NONE for cell in cells)}
    return tuple(told), list(zip(*told.values(), strict=True))


def legend(manifest: Manifest, headings: Cells) -> list[str]:
    """One sentence for each heading that does not explain itself, and for what the gate found."""
    evaluated_on = manifest.quality.evaluated_on
    compared = "perplexity" if evaluated_on else "exp(loss)"
    sentences = {
        "loss": "loss: nats per token on the calibration text.",
        "perplexity": f"perplexity: on held-out text, {evaluated_on}.",
        "× dense": f"× dense: {compared} as a multiple of the dense model's.",
        "margin": f"margin: {_MARGINS[_metric(manifest)]} ± standard error over windows.",
        "in full": "in full: candidates evaluated on every window, and not on the first few alone.",
    }
    told = [sentence for name, sentence in sentences.items() if name in headings]
    return [*told, *_measured(manifest.quality)]


def _measured(quality: Quality) -> Iterator[str]:
    """What is known of the whole order alone, and what the gate found."""
    if (its := quality.quantized) is not None:
        dense, pruned = (short(quality.perplexities[at]) for at in (0, -1))
        yield (
            f"quantised: perplexity {dense} dense, {pruned} pruned, {short(its.perplexity)} pruned "
            f"with {its.weights} weights, which were measured and are not what is published."
        )
    if (asked := quality.zero_shot) is not None and asked.dense_mean and asked.pruned_mean:
        yield (
            f"zero-shot: {asked.dense_mean:.4f} dense, {asked.pruned_mean:.4f} pruned, the mean of "
            f"{', '.join(score.task for score in asked.pruned)}."
        )
    if (probe := quality.probe) is not None:
        yield (
            f"probe: {probe.dense.score:.3f} dense, {probe.pruned.score:.3f} pruned, of 1; "
            f"a drop of {probe.drop:.3f} ± {probe.standard_error:.3f}."
        )
    yield from (f"warning: {warning}." for warning in quality.warnings)


def short(value: float) -> str:
    """A perplexity or a ratio, in a few characters however large it is."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _metric(manifest: Manifest) -> Metric:
    return PruneSpec.from_dict(manifest.spec).metric


def _row(manifest: Manifest, step: int, removal: Removal | None) -> Row:
    quality = manifest.quality
    perplexities = quality.perplexities or calibration_perplexities(manifest)
    windows = removal.num_windows.values() if removal else ()
    return Row(
        num_removed=step,
        num_blocks=manifest.num_blocks - step,
        block=manifest.removed_blocks[step - 1] if step else None,
        loss=quality.losses[step],
        perplexity=quality.perplexities[step] if quality.perplexities else None,
        ratio=perplexities[step] / perplexities[0],
        margin=removal.margin if removal else None,
        margin_error=removal.margin_error if removal else None,
        num_candidates=len(windows) if removal else None,
        num_full=sum(num == max(windows) for num in windows) if removal else None,
    )


def _margin(row: Row) -> str:
    if row.margin is None:
        return NONE
    return f"{row.margin:.4f}" + (
        f" ± {row.margin_error:.4f}" if row.margin_error is not None else ""
    )


_COLUMNS: Mapping[str, Callable[[Row], str]] = MappingProxyType(
    {
        "blocks": lambda row: str(row.num_blocks),
        "removed": lambda row: NONE if row.block is None else str(row.block),
        "loss": lambda row: f"{row.loss:.4f}",
        "perplexity": lambda row: NONE if row.perplexity is None else short(row.perplexity),
        "× dense": lambda row: short(row.ratio),
        "margin": _margin,
        "in full": lambda row: (
            NONE if row.num_full is None else f"{row.num_full} of {row.num_candidates}"
        ),
    }
)
