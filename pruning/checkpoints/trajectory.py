"""The trajectory: the quality after each removal, as rows, table and legend."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Quality, perplexity_of
from pruning.evaluation.results import ProbeComparison
from pruning.plural import counted
from pruning.removal import Removal, is_tie
from pruning.repair.record import DepthRepair, Method
from pruning.spec.prune import Metric, PruneSpec

Cells = tuple[str, ...]
Margin = tuple[float | None, float | None]  # of a round, and its standard error
NONE = "-"
CEILING = 1e6  # in a plot, larger values are drawn here, so that the others can be told apart
_MARGINS: Mapping[Metric, str] = {
    Metric.COSINE: "how much more the runner-up changes its input, as 1 - cosine",
    Metric.ONE_SHOT: "how much higher the dense model's loss is without the runner-up, in nats",
    Metric.SLEB: "how much higher the loss is without the runner-up, in nats",
    Metric.KL: "how much further predictions without the runner-up are from the dense model's, "
    "as KL divergence in nats",
}


@dataclass(frozen=True)
class Row:
    """The model after ``num_removed`` removals. Unknown values are None."""

    num_removed: int
    num_blocks: int  # that remain
    block: int | None  # the last removed
    loss: float  # on the calibration windows, nats per predicted token
    perplexity: float | None  # on held-out windows
    ratio: float  # of perplexity to the dense one, on held-out windows if there are any
    margin: float | None  # score of the runner-up minus that of the removed block
    margin_error: float | None  # standard error of the margin
    num_candidates: int | None  # of the round
    num_full: int | None  # candidates that were evaluated on all windows
    speedup: float | None  # predicted for a decode step
    repair: str | None  # what the perplexity contains: the method of a repair, or a healing


def rows(manifest: Manifest, removals: Iterable[Removal] = ()) -> tuple[Row, ...]:
    """Return the row of the dense model, and one for each removed block."""
    of_block = {removal.block: removal for removal in removals}
    dense = _row(manifest, 0, None)
    return dense, *(
        _row(manifest, step, of_block.get(block))
        for step, block in enumerate(manifest.removed_blocks, start=1)
    )


def calibration_perplexities(manifest: Manifest) -> list[float]:
    """Return exp of the calibration losses, dense first, limited to what a float can hold."""
    return [perplexity_of(loss) for loss in manifest.quality.losses]


def predicted_speedups(manifest: Manifest) -> list[float]:
    """Of a decode step for 0, 1, 2 ... removals; empty in old manifests."""
    depths = range(len(manifest.removed_blocks) + 1)
    speedups = [manifest.predicted_speedup(depth) for depth in depths]
    return [speedup for speedup in speedups if speedup is not None]


def table(rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """Return the headings and the cells of each row, without empty columns."""
    texts = {heading: [cell(row) for row in rows] for heading, cell in _COLUMNS.items()}
    if all(row.num_full == row.num_candidates for row in rows):
        del texts["in full"]
    shown = {name: cells for name, cells in texts.items() if any(cell != NONE for cell in cells)}
    return tuple(shown), list(zip(*shown.values(), strict=True))


def legend(
    manifest: Manifest,
    headings: Cells,
    rows: Sequence[Row] = (),
    speedups: Mapping[int, str] | None = None,
) -> list[str]:
    """Explain the headings, count ties, and state what was measured on the pruned model alone.

    ``speedups`` are those measured by number of removed blocks; None if they are not known here.
    """
    evaluated_on = manifest.quality.evaluated_on
    is_repaired = any(any(domain.repaired) for domain in manifest.quality.domains)
    served = "of the model as served, with its repair, " if is_repaired else ""
    if manifest.healing is not None:
        where = "" if manifest.healing.is_elastic else "in the last row "
        served = f"{served}and {where}after healing, "
    extent = manifest.quality.extent
    until = f" Its extent: {extent}." if extent else ""
    compared = "perplexity" if evaluated_on else "exp(loss)"
    metric = PruneSpec.from_dict(manifest.spec).metric
    sentences = {
        "loss": "loss: nats per token on the calibration text.",
        "perplexity": f"perplexity: {served}on held-out text, {evaluated_on}.{until}",
        "× dense": f"× dense: {compared} relative to the dense model.",
        "speed-up": _speedup_sentence(manifest, rows, speedups),
        "repair": "repair: how the weights were repaired at that depth.",
        "margin": f"margin: {_MARGINS[metric]} ± standard error over windows.",
        "in full": "in full: candidates evaluated on all windows, not only the first ones.",
    }
    explained = [sentence for name, sentence in sentences.items() if name in headings]
    return [
        *explained,
        *_repairs(manifest),
        *ties([(row.margin, row.margin_error) for row in rows], len(rows) - 1),
        *_measured(manifest.quality),
    ]


def ties(margins: Iterable[Margin], num_rounds: int) -> Iterator[str]:
    """Say how many rounds were ties, and what to do. Nothing if none was."""
    if num_ties := sum(is_tie(*margin) for margin in margins):
        whose = "Its" if num_ties == 1 else "Their"
        yield (
            f"ties: {num_ties} of {counted(num_rounds, 'round')}. {whose} margin is within "
            "two standard errors, so a different text may lead to a different block; use "
            "more calibration text for a more reliable order."
        )


def margin_text(margin: Margin) -> str:
    """A margin with its error, and whether the round was a tie."""
    value, error = margin
    if value is None:
        return NONE
    if error is None:
        return f"{value:.4f}"
    return f"{value:.4f} ± {error:.4f}{', a tie' if is_tie(value, error) else ''}"


def _speedup_sentence(
    manifest: Manifest, rows: Sequence[Row], speedups: Mapping[int, str] | None
) -> str:
    sentence = (
        "speed-up: predicted decoding speed-up at batch size 1, from the times of "
        "embeddings, blocks and head on the machine of the run. "
        f"{_measured_speedups(rows, speedups)}"
    )
    target = PruneSpec.from_dict(manifest.spec).target_speedup
    predicted = manifest.predicted_speedup(len(manifest.removed_blocks))
    if target is None or predicted is None:
        return sentence
    return f"{sentence} Target: {target:g}, predicted: {predicted:.2f}."


def _measured_speedups(rows: Sequence[Row], speedups: Mapping[int, str] | None) -> str:
    if speedups is None:
        return "Run `sleb bench` to measure it."
    depths = [row.num_removed for row in rows if row.num_removed]
    known = [f"{speedups[depth]} with {depth} removed" for depth in depths if depth in speedups]
    unknown = [str(depth) for depth in depths if depth not in speedups]
    if not known:
        return "Not measured yet: run `sleb bench`."
    sentence = f"Measured by `sleb bench`: {', '.join(known)}."
    return f"{sentence} Not measured yet: {', '.join(unknown)} removed." if unknown else sentence


def _repairs(manifest: Manifest) -> Iterator[str]:
    """What was not repaired, and why."""
    yield from (f"{note}." for note in manifest.repair_notes)
    left = [
        f"after {counted(depth.num_removed, 'removal')} ({', '.join(_harms(depth))})"
        for depth in manifest.repair or ()
        if depth.method is Method.NONE and any(depth.gains.values())
    ]
    if left:
        yield f"not repaired, because every repair made a text worse: {'; '.join(left)}."


def _harms(depth: DepthRepair) -> Iterator[str]:
    """What each method costs the domain that it harms most."""
    for method, gains in depth.gains.items():
        if gains:
            domain, gain = min(gains.items(), key=lambda each: each[1].mean)
            yield f"{method}: {-gain.mean:.4f} nats per token on {domain}"


def _measured(quality: Quality) -> Iterator[str]:
    """Describe the measurements of the pruned model, and the warnings of the quality gate."""
    if (quantized := quality.quantized) is not None:
        dense, pruned = (short(quality.perplexities[at]) for at in (0, -1))
        yield (
            f"quantized: perplexity {dense} dense, {pruned} pruned, "
            f"{short(quantized.perplexity)} pruned with {quantized.weights} weights. The "
            "published weights are not quantized."
        )
    yield from probe_line(quality.probe)
    yield from (f"warning: {warning}." for warning in quality.warnings)


def probe_line(probe: ProbeComparison | None) -> Iterator[str]:
    """The scores of both models. Nothing if they were not probed."""
    if probe is not None:
        yield (
            f"probe: {probe.dense.score:.3f} dense, {probe.pruned.score:.3f} pruned, out of "
            f"1; a drop of {probe.drop:.3f} ± {probe.standard_error:.3f}."
        )


def short(value: float) -> str:
    """Format a perplexity or a ratio in few characters, however large it is."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


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
        speedup=manifest.predicted_speedup(step),
        repair=_repair(manifest, step),
    )


def _repair(manifest: Manifest, step: int) -> str | None:
    """How the model of this row was corrected. A healed checkpoint does not record methods."""
    if manifest.healing is None:
        return manifest.repair[step - 1].method.value if step and manifest.repair else None
    if step == len(manifest.removed_blocks) or (step and manifest.healing.is_elastic):
        return "healed"
    is_repaired = any(domain.repaired_after(step) for domain in manifest.quality.domains)
    return "repaired" if is_repaired else None


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "blocks": lambda row: str(row.num_blocks),
    "removed": lambda row: NONE if row.block is None else str(row.block),
    "loss": lambda row: f"{row.loss:.4f}",
    "perplexity": lambda row: NONE if row.perplexity is None else short(row.perplexity),
    "× dense": lambda row: short(row.ratio),
    "speed-up": lambda row: NONE if row.speedup is None else f"{row.speedup:.2f}",
    "repair": lambda row: NONE if row.repair in (None, Method.NONE) else str(row.repair),
    "margin": lambda row: margin_text((row.margin, row.margin_error)),
    "in full": lambda row: (
        NONE if row.num_full is None else f"{row.num_full} of {row.num_candidates}"
    ),
}
