"""What a checkpoint knows of its depths, for an advice: speed-ups are predicted."""

from collections.abc import Callable

from pruning.checkpoints.store import Manifest
from pruning.evaluation.advice import Candidate
from pruning.evaluation.quality import DomainQuality, Interval, Measured


def candidates_of(manifest: Manifest) -> list[Candidate]:
    """Every depth as it is served; of a healed checkpoint, those of its source as well."""
    healing, last = manifest.healing, len(manifest.removed_blocks)
    source = healing.parent if healing else manifest.name
    unhealed = DomainQuality.unhealed_after
    depths = [_candidate(manifest, source, depth, unhealed) for depth in range(1, last + 1)]
    if healing is None:
        return depths
    healed = range(1 if healing.is_elastic else last, last + 1)
    served = DomainQuality.served_after
    return [*depths, *(_candidate(manifest, manifest.name, depth, served) for depth in healed)]


def _candidate(
    manifest: Manifest,
    checkpoint: str,
    depth: int,
    of_depth: Callable[[DomainQuality, int], Measured],
) -> Candidate:
    last, predicted = len(manifest.removed_blocks), manifest.predicted_speedup(depth)
    name = checkpoint if depth == last else f"{checkpoint}-{depth}"
    whole, pruned = manifest.dense_num_parameters, manifest.num_parameters
    domains = manifest.quality.domains
    return Candidate(
        name=name,
        num_removed=depth,
        num_blocks=manifest.num_blocks - depth,
        speedup=None if predicted is None else Interval(predicted, None, None),
        is_measured=False,
        ratios={domain.domain: domain.ratio(of_depth(domain, depth)) for domain in domains},
        parameters=(whole - (whole - pruned) / last * depth) / whole,
        probe=manifest.quality.probe if name == manifest.name else None,
    )
