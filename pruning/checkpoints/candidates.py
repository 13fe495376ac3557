"""What a checkpoint knows of its depths, for an advice: speed-ups are predicted."""

from collections.abc import Iterator

from pruning.checkpoints.store import Manifest
from pruning.evaluation.advice import Candidate
from pruning.evaluation.quality import DomainQuality, Interval


def candidates_of(manifest: Manifest) -> list[Candidate]:
    """Every depth as it is served; of a healed checkpoint, those of its source as well."""
    last = len(manifest.removed_blocks)
    depths = [_candidate(manifest, depth, manifest.quality.domains) for depth in range(1, last + 1)]
    return [*depths, *_healed(manifest)]


def _healed(manifest: Manifest) -> Iterator[Candidate]:
    """The depths that were healed, of which every checkpoint of a healing has the last."""
    if manifest.healing is None:
        return
    domains, last = manifest.quality.domains, len(manifest.removed_blocks)
    for depth in range(1 if manifest.healing.is_elastic else last, last + 1):
        name = manifest.name if depth == last else f"{manifest.name}-{depth}"
        ratios = {domain.domain: domain.ratio(domain.served_after(depth)) for domain in domains}
        yield _with(manifest, depth, name, ratios)


def _candidate(manifest: Manifest, depth: int, domains: tuple[DomainQuality, ...]) -> Candidate:
    source = manifest.healing.parent if manifest.healing else manifest.name
    name = source if depth == len(manifest.removed_blocks) else f"{source}-{depth}"
    ratios = {domain.domain: domain.ratio(domain.unhealed_after(depth)) for domain in domains}
    return _with(manifest, depth, name, ratios)


def _with(manifest: Manifest, depth: int, name: str, ratios: dict[str, Interval]) -> Candidate:
    predicted = manifest.predicted_speedup(depth)
    whole, pruned = manifest.dense_num_parameters, manifest.num_parameters
    per_block = (whole - pruned) / len(manifest.removed_blocks)
    return Candidate(
        name=name,
        num_removed=depth,
        num_blocks=manifest.num_blocks - depth,
        speedup=None if predicted is None else Interval(predicted, None, None),
        is_measured=False,
        ratios=ratios,
        parameters=(whole - per_block * depth) / whole,
        probe=manifest.quality.probe if name == manifest.name else None,
    )
