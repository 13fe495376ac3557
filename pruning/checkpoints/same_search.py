"""What a run has published before it was interrupted, or retried with other settings."""

from dataclasses import replace
from pathlib import Path

from pruning.checkpoints.store import MANIFEST, Manifest, read_manifest
from pruning.spec import InvalidSpec
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec


def is_of_search(manifest: Manifest, spec: PruneSpec) -> bool:
    """Whether a run with the search of ``spec`` has published it."""
    if manifest.spec_digest == spec.digest():
        return True
    earlier = _spec_of(manifest)
    return earlier is not None and earlier.search_digest() == spec.search_digest()


def published_by_search(target: Path, spec: PruneSpec) -> Manifest | None:
    """What a run with the search of ``spec`` has published at ``target``, if anything."""
    manifest = _manifest_at(target)
    return manifest if manifest is not None and is_of_search(manifest, spec) else None


def is_left_to_heal(manifest: Manifest, spec: PruneSpec) -> bool:
    """Whether a run of ``spec`` can go on with this checkpoint: all but the healing is as asked."""
    earlier = _spec_of(manifest)
    if spec.heal is None or earlier is None:
        return False
    return replace(earlier, heal=None) == replace(spec, heal=None)


def is_healed_otherwise(target: Path, source: str, heal: Heal) -> bool:
    """Whether ``source`` was healed with other settings into the checkpoint at ``target``."""
    manifest = _manifest_at(target)
    healing = manifest.healing if manifest is not None else None
    return healing is not None and healing.parent == source and healing.settings != heal


def _manifest_at(target: Path) -> Manifest | None:
    return read_manifest(target) if (target / MANIFEST).is_file() else None


def _spec_of(manifest: Manifest) -> PruneSpec | None:
    """Its settings; None if they are none that this version knows."""
    try:
        return PruneSpec.from_dict(manifest.spec)
    except (InvalidSpec, TypeError, ValueError):
        return None
