"""Pruning runs on a tiny model, and manifests and removals of any shape made without a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.healing.record import Check, Healing, Run
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.removal import Losses, Removal, decide
from pruning.repair.record import Method
from pruning.search.state import SearchState
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import Metric, PruneSpec, Resident, Search
from tests.support.recorder import Recorder


def manifest_of(
    num_blocks: int,
    removed: Sequence[int],
    losses: Sequence[float],
    perplexities: Sequence[float] = (),
    *,
    parent: str = "tiny",
    protect_first: int = 1,
    protect_last: int = 1,
    search: Search = Search.EXACT,
    resident: Resident = Resident.MODEL,
    metric: Metric = Metric.SLEB,
) -> Manifest:
    spec = PruneSpec(
        parent,
        max(1, len(removed)),
        protect_first=protect_first,
        protect_last=protect_last,
        search=search,
        resident=resident,
        metric=metric,
        calibration=CalibrationSpec(dataset=Dataset.FILE, path="text.txt"),
    )
    return Manifest(
        name="tiny@prn-1",
        parent=parent,
        num_blocks=num_blocks,
        removed_blocks=tuple(removed),
        num_parameters=900,
        dense_num_parameters=1000,
        quality=Quality(
            tuple(losses), tuple(perplexities), "some text, 4 windows" if perplexities else ""
        ),
        dtype="float32",
        calibration={"source": "self", "num_windows": 3, "seqlen": 8, "digest": "d1g"},
        spec=spec.to_dict(),
        spec_digest="a",
        versions={},
        created_at=1.0,
    )


def domain_of(
    name: str, raw: Sequence[Losses], repaired: Sequence[Losses | None] = ()
) -> DomainQuality:
    """A domain whose dense model has a loss of 3, 4 and 5 nats on its windows.

    There are two of each, as an interval takes five, and of the other losses as well.
    """
    dense = (3.0, 4.0, 5.0) * 2
    return DomainQuality(
        domain=name,
        source=f"some {name}",
        num_windows=len(dense),
        seqlen=8,
        digest=f"digest of {name}",
        dense=Measured.of_dense(dense),
        raw=tuple(Measured.against(dense, (*losses, *losses)) for losses in raw),
        repaired=tuple(
            Measured.against(dense, (*found, *found)) if found else None for found in repaired
        ),
    )


RUN = manifest_of(6, (3, 1), (4.0, 4.25, 5.0), (50.0, 60.0, 125.0))


def healed_run(manifest: Manifest, loss: float) -> Manifest:
    """The same after a healing, with a loss of ``loss`` nats on each window of every domain."""
    check = Check(1, 64, 0.5, {})
    run = Run(1, 64, 1.0, check, (check,), (0.5,))
    settings = Heal(num_tokens=64, depths=Depths.DEEPEST)
    heal = Healing(manifest.name, settings, Method.RIDGE, run, None, (), (), 0)
    dense = (3.0, 4.0, 5.0) * 2
    healed = Measured.against(dense, (loss,) * len(dense))
    depths = (*(None for _ in manifest.removed_blocks[1:]), healed)
    domains = tuple(replace(domain, healed=depths) for domain in manifest.quality.domains)
    quality = replace(manifest.quality, domains=domains)
    name = f"{manifest.name}+healed"
    return replace(manifest, name=name, quality=quality, repair=None, healing=heal)


def removals_of_run(*, is_staged: bool) -> list[Removal]:
    """Of ``RUN``, on three windows; in a race, the worst candidates have seen one of them."""
    seen = 1 if is_staged else 3
    first = {1: [4.4, 4.3, 4.35], 2: [5.0] * seen, 3: [4.2, 4.3, 4.25], 4: [6.0] * seen}
    second = {1: [5.0, 5.0, 5.0], 2: [5.5, 5.5, 5.5], 4: [7.0] * seen}
    return [decide(1, 4.0, first), decide(2, 4.0, second)]


def prune_tiny(
    models_dir: Path,
    spec: PruneSpec,
    name: str,
    observer: Recorder | None = None,
    earlier: SearchState | None = None,
) -> tuple[Manifest, Path]:
    target = models_dir.parent / "checkpoints" / name
    manifest = prune(
        spec,
        name=name,
        target=target,
        models=ModelStore(models_dir),
        observer=observer or Recorder(),
        earlier=earlier,
    )
    return manifest, target
