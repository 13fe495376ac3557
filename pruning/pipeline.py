"""One pruning run from spec to published checkpoint: load, calibrate, search, repair, evaluate,
publish, and heal what was published.

It knows nothing of queues and HTTP. Progress goes to an observer, and an exception from the
observer ends the run before anything is published.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Self

from pruning.checkpoints.card import model_card
from pruning.checkpoints.publish import publish
from pruning.checkpoints.same_search import (
    is_healed_otherwise,
    is_left_to_heal,
    published_by_search,
)
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory_plot import write_plot
from pruning.checkpoints.verify import verify_portable
from pruning.config import Verify
from pruning.data.calibration import (
    RepairWindows,
    calibrate,
    check_healable_text,
    evaluation_windows,
    repair_windows,
)
from pruning.data.windows import Windows, described
from pruning.evaluation.assess import assess, prepare
from pruning.evaluation.quality import Quality
from pruning.extras import require_extra
from pruning.heal_checkpoint import heal_checkpoint
from pruning.healing.places import HealedPlaces, healed_beside
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import NO_OWN, Own, num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.memory import (
    StateBudgetTooSmall,
    is_out_of_memory,
    release_cache,
    shortage,
)
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore, copy_companions, num_parameters, read_config
from pruning.removal import Removal, kept
from pruning.repair.folding import folded
from pruning.repair.order import (
    OrderRepair,
    check_repair,
    limit,
    repair_order,
    windows_for,
)
from pruning.repair.record import Method
from pruning.repair.states import SpillFailed
from pruning.repair.stored import write_repair
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.search import plan_of, search
from pruning.search.state import SearchState
from pruning.sleb import Blocks
from pruning.spec.evaluation import GateAction
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Repair


def prune(
    spec: PruneSpec,
    *,
    name: str,
    target: Path,
    models: ModelStore,
    observer: Observer,
    resources: Resources | None = None,
    earlier: SearchState | None = None,
    confirm: Callable[[], object] = lambda: None,
    verify: Verify = Verify.INLINE,
    overwrite: bool = False,
    tenant: str | None = None,
) -> Manifest:
    """Prune as ``spec`` says and publish the checkpoint ``name`` in the directory ``target``.

    If it asks for healing, the healed checkpoint is published beside it, and its manifest returned;
    a run whose first checkpoint is there goes on with that. One of the same search, published with
    other settings, is replaced, and with ``overwrite`` any. ``earlier`` is the state of a search of
    this spec. ``confirm`` is called before a checkpoint becomes visible, and while another process
    verifies it; an exception from it cancels. All of it belongs to ``tenant``. Raises
    ``QualityGateFailed``, ``CheckpointNotPortable``, and before any weight is read what
    ``PruneSpec.num_evaluations``, ``check_repair`` and ``prepare`` raise.
    """
    resources = resources or Resources()
    manifest = None if overwrite else published_by_search(target, spec)
    if manifest is None or not is_left_to_heal(manifest, spec):
        manifest = _published(  # neither a name nor a tuple keeps the run and its weights here
            _searched(spec, models, observer, resources, earlier or SearchState()),
            name,
            target,
            confirm,
            verify,
            overwrite=overwrite or (manifest is not None and manifest.spec_digest != spec.digest()),
            tenant=tenant,
        )
    if spec.heal is None:
        return manifest
    how = (models, observer, resources, confirm, verify)
    return heal_again(spec.heal, healed_beside(target), *how, overwrite=overwrite)


def heal_again(
    heal: Heal,
    places: HealedPlaces,
    models: ModelStore,
    observer: Observer,
    resources: Resources,
    confirm: Callable[[], object],
    verify: Verify,
    *,
    overwrite: bool = False,
    tenant: str | None = None,
) -> Manifest:
    """As ``heal_checkpoint``, but what other settings have healed there is replaced."""
    return heal_checkpoint(
        heal,
        places,
        models=models,
        observer=observer,
        resources=resources,
        confirm=confirm,
        how=verify,
        overwrite=overwrite or is_healed_otherwise(places.target, places.source.name, heal),
        tenant=tenant,
    )


def _published(
    run: "_Run",
    name: str,
    target: Path,
    confirm: Callable[[], object],
    verify: Verify,
    *,
    overwrite: bool,
    tenant: str | None,
) -> Manifest:
    """Repair, measure and publish."""
    observer, run = run.observer, run.repaired()
    observer.phase("evaluate")
    spec = _before_healing(run.spec)
    quality = assess(spec, run.dense, run.removals, run.measured_on, run.own_tensors)
    for warning in quality.warnings:
        observer.warned(warning)
    observer.phase("publish")
    run = run.up_to(quality.num_removed)
    run = replace(run, dense=run.dense.in_dtype(spec.published_dtype))
    manifest = replace(run.manifest(name, quality), tenant=tenant)
    check = partial(
        verify_portable, dense=run.dense, keep=manifest.keep, own=run.own, how=verify, ask=confirm
    )
    write = partial(run.write, manifest=manifest)
    return publish(target, manifest, write, confirm, check, overwrite=overwrite)


def _before_healing(spec: PruneSpec) -> PruneSpec:
    """The gate only warns of what a healing is still to improve."""
    if spec.heal is None or spec.gate is None:
        return spec
    return replace(spec, gate=replace(spec.gate, action=GateAction.WARN))


@dataclass(frozen=True)
class _Run:
    """A finished search, and what repair and the checkpoint need of it."""

    spec: PruneSpec
    dense: DenseModel
    fingerprint: str  # of the dense model when it was loaded
    windows: Windows
    to_repair: RepairWindows | None  # the text for it; None if nothing is to be repaired
    removals: list[Removal]
    times: BlockTimes | None  # of the dense model
    measured_on: Mapping[str, Windows]  # by domain; empty if perplexities are not measured
    observer: Observer
    repair: OrderRepair | None = None
    notes: tuple[str, ...] = ()  # on what is not repaired, and why

    @cached_property
    def own_tensors(self) -> Mapping[int, Own]:
        """Those of each depth that is repaired, by its number of removed blocks."""
        dense, total = self.dense, num_blocks(self.dense.model)
        chosen = enumerate(self.repair.chosen if self.repair else (), start=1)
        return {
            number: folded(dense.model, kept(total, self.order[:number]), repaired, dense.read)
            for number, repaired in chosen
            if repaired.method is not Method.NONE
        }

    @property
    def order(self) -> Blocks:
        return tuple(removal.block for removal in self.removals)

    @property
    def own(self) -> Own:
        """Those of the full depth."""
        return self.own_tensors.get(len(self.removals), NO_OWN)

    def up_to(self, num_removed: int) -> Self:
        """The same with so many removals."""
        repair = self.repair and self.repair.up_to(num_removed)
        return replace(self, removals=self.removals[:num_removed], repair=repair)

    def manifest(self, name: str, quality: Quality) -> Manifest:
        model, depth = self.dense.model, num_blocks(self.dense.model)
        num_windows, seqlen = self.windows.token_ids.shape
        return Manifest(
            name=name,
            parent=self.spec.model,
            num_blocks=depth,
            removed_blocks=self.order,
            num_parameters=num_parameters(view(model, kept(depth, self.order))),
            dense_num_parameters=num_parameters(model),
            quality=quality,
            dtype=str(model.dtype).removeprefix("torch."),
            calibration={
                "source": self.windows.source,
                "num_windows": num_windows,
                "seqlen": seqlen,
                "digest": self.windows.digest,
            },
            spec=self.spec.to_dict(),
            spec_digest=self.spec.digest(),
            versions={name: version(name) for name in ("sleb-serve", "torch", "transformers")},
            created_at=time.time(),
            parent_dtype=str(read_config(self.dense.path).dtype).removeprefix("torch."),
            parent_fingerprint=self.fingerprint,
            repair=self.repair.records if self.repair else None,
            repair_notes=self.notes,
            block_times=self.times,
        )

    def write(self, directory: Path, manifest: Manifest) -> None:
        """Every file of the checkpoint but its manifest."""
        self.dense.save(manifest.keep, directory, own=self.own)
        copy_companions(self.dense.path, directory)
        card = model_card(manifest, self.removals, lineage_of(self.dense.path))
        (directory / "README.md").write_text(card, encoding="utf-8")
        write_plot(manifest, directory)
        _write_json(directory / "removal.json", [asdict(removal) for removal in self.removals])
        windows = described(self.windows, self.dense.tokenizer)
        _write_json(directory / "calibration.json", windows)
        self._write_repair(directory)

    def _write_repair(self, directory: Path) -> None:
        if self.repair is None or self.to_repair is None:
            return
        for number, repaired in enumerate(self.repair.chosen, start=1):
            write_repair(directory, number, repaired)
        parts = {"train": self.to_repair.train, "selection": self.to_repair.selection}
        text = {
            part: {
                name: described(windows, self.dense.tokenizer) for name, windows in domains.items()
            }
            for part, domains in parts.items()
        }
        _write_json(directory / "repair.json", text)

    def repaired(self) -> Self:
        """With the repairs that the spec asks for.

        ``AUTO`` also means none: where memory does not suffice, a warning takes the place of one.
        """
        if self.to_repair is None:
            return self
        self.observer.phase("repair")
        resources = self.dense.resources
        if self.spec.repair is not Repair.AUTO:
            return replace(self, repair=self._repair(self.to_repair, resources.batch_tokens))
        reason = resources.no_repair
        for batch_tokens in () if reason else (resources.batch_tokens, resources.batch_tokens // 2):
            try:
                return replace(self, repair=self._repair(self.to_repair, batch_tokens))
            except Exception as error:
                if (reason := _shortage(error)) is None:
                    raise
            release_cache()  # only now, as the error held what was in memory
        self.observer.warned(said := f"the model is not repaired: {reason}")
        return replace(self, notes=(said,))

    def _repair(self, windows: RepairWindows, batch_tokens: int) -> OrderRepair:
        return repair_order(
            self.spec.repair,
            windows,
            self.dense.visited(),
            self.order,
            batch_tokens=batch_tokens,
            state_budget=self.dense.resources.state_budget,
            open_walk=self.dense.open_walk(),
            observe=self.observer.repairing,
        )


def _searched(
    spec: PruneSpec,
    models: ModelStore,
    observer: Observer,
    resources: Resources,
    earlier: SearchState,
) -> _Run:
    info = models.inspect(spec.model)
    spec.num_evaluations(info.num_blocks)  # raises for a search that cannot succeed
    config = read_config(info.path)
    check_repair(spec.repair, config)
    observer.phase("load")
    prepare(spec, info, resources)
    dense = load_dense_model(info.path, spec.resident, resources, dtype=spec.dtype)
    parent_fingerprint = fingerprint(dense.path)  # now, as the files may change during the search
    observer.phase("calibrate")
    source = (spec.calibration, dense.model, dense.tokenizer, observer.calibrating)
    windows = calibrate(*source)
    read = partial(repair_windows, *source)
    notes: list[str] = []
    to_repair = windows_for(spec.repair, config, read, notes.append)
    for note in notes:
        observer.warned(note)
    if to_repair is not None and (left := limit(config)) is not None:
        notes.append(left)
    held_out = partial(evaluation_windows, *source, evaluation=spec.evaluation)
    measured_on = held_out() if spec.evaluate else {}
    if spec.heal is not None:  # raises now what would be raised behind the search
        require_extra("heal", "healing")
        check_healable_text(spec.calibration, dense.model, dense.tokenizer)
    observer.phase("search")
    plan = plan_of(spec, dense, windows, earlier)
    state = earlier if earlier.plan == plan else SearchState(plan)
    removals = search(spec, dense, windows, observer, state)
    run = (windows, to_repair, removals, plan.times, measured_on)
    return _Run(spec, dense, parent_fingerprint, *run, observer, notes=tuple(notes))


def _shortage(error: Exception) -> str | None:
    """What says that memory, or the disk that stands in for it, does not suffice for a repair."""
    if isinstance(error, (SpillFailed, StateBudgetTooSmall)):
        return str(error)
    return shortage(error) if is_out_of_memory(error) else None


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
