"""Healing of a published pruned checkpoint: load, train, measure, publish what came out.

It knows nothing of queues and HTTP. The training is kept in a file, so that another process can go
on with it. An exception from the observer ends it before anything is published.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from shutil import copyfile
from typing import Self

from pruning.checkpoints.card import model_card
from pruning.checkpoints.publish import publish, published
from pruning.checkpoints.store import Manifest, repair_of, verify
from pruning.checkpoints.trajectory_plot import write_plot
from pruning.checkpoints.verify import verify_portable
from pruning.config import Verify
from pruning.data.calibration import RepairWindows, healing_windows
from pruning.evaluation.assess import assess_healed, held_out_for, prepare_tasks
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import Quality
from pruning.extras import require_extra
from pruning.healing.adapter import Adapter, Tensors, depth_tensors, on_blocks, with_adapter
from pruning.healing.lock import locked
from pruning.healing.peers import ALONE, PeerLost, Peers
from pruning.healing.places import ADAPTER_FOLDER, CONTROL, CONTROL_FOLDER, HEALED, HealedPlaces
from pruning.healing.record import Healing, NotHealable, Progress, Run, TrainedText, check_healable
from pruning.healing.state import read_state, save_state
from pruning.healing.students import Students, alone, of_order
from pruning.healing.train import HealingDiverged, Training
from pruning.models.blocks import NO_OWN, Own, view
from pruning.models.lineage import lineage_of
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore, copy_companions, num_parameters
from pruning.records import read_record
from pruning.removal import Removal
from pruning.repair.folding import folded
from pruning.repair.record import Method, repair_file
from pruning.repair.repair import Repaired
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import PruneSpec, Resident

STEPS_PER_SAVE = 20
_PATIENCE_S = 60.0  # for a worker that has lost its lease, which is then killed


def heal_checkpoint(
    heal: Heal,
    places: HealedPlaces,
    *,
    models: ModelStore,
    observer: Observer,
    resources: Resources | None = None,
    confirm: Callable[[], object] = lambda: None,
    how: Verify = Verify.INLINE,
    overwrite: bool = False,
    patience_s: float = _PATIENCE_S,
    peers: Peers = ALONE,
    tenant: str | None = None,
) -> Manifest:
    """Heal the checkpoint at ``places.source`` and publish the result at ``places.target``.

    A training that was interrupted goes on where its file says, and a result that is there already
    is kept. It belongs to ``tenant``, or else to that of the source. Waits ``patience_s`` for
    another process that heals in the same place. This one is the first of ``peers``; the others
    call ``help_heal``. Other arguments and errors are those of
    ``pipeline.prune``; also raises ``ExtraMissing``, ``NotHealable``, ``HealingDiverged``,
    ``HealingInProgress`` and ``PeerLost``.
    """
    require_extra("heal", "healing")
    observer.phase("load")
    with locked(places.state, places.source.name, patience_s=patience_s, ask=confirm):
        source = verify(places.source)
        source = source if tenant is None else replace(source, tenant=tenant)
        check_healable(source.name, source.healing)
        digest = healing_digest(heal, source)
        manifest = None if overwrite else published(places.target, digest)
        peers.as_first(manifest is None)
        if manifest is None:
            dense = _parent_of(source, models, resources or Resources())
            run = _begun(heal, source, places, dense, observer, peers)
            manifest = _published(run, confirm, how, overwrite=overwrite)
        places.discard_state()
        return manifest


def help_heal(
    heal: Heal, places: HealedPlaces, models: ModelStore, resources: Resources, peers: Peers
) -> None:
    """Take a share in what the first of ``peers`` trains by ``heal_checkpoint``, and do no more.

    Raises what that raises before it measures.
    """
    require_extra("heal", "healing")
    source = verify(places.source)
    check_healable(source.name, source.healing)
    if not peers.as_first(0):  # it is published already
        return
    dense = _parent_of(source, models, resources)
    run = _begun(heal, source, places, dense, Observer(), peers)
    model = run.healed()
    if heal.control:
        run.control(model.progress)


def _begun(
    heal: Heal,
    source: Manifest,
    places: HealedPlaces,
    dense: DenseModel,
    observer: Observer,
    peers: Peers,
) -> "_Healing":
    """All that a training needs. Raises now what would be raised after it."""
    spec = PruneSpec.from_dict(source.spec)
    observer.phase("calibrate")
    windows = healing_windows(spec.calibration, dense.model, dense.tokenizer, observer.calibrating)
    held_out_for(spec, dense, source.quality)
    prepare_tasks(spec, dense.resources)
    return _Healing(heal, source, places, spec, dense, windows, observer, peers)


def _published(
    run: "_Healing", confirm: Callable[[], object], how: Verify, *, overwrite: bool
) -> Manifest:
    """Train, measure and publish."""
    heal, observer = run.heal, run.observer
    observer.phase("heal")
    model = run.healed()
    control = run.control(model.progress) if heal.control else None
    observer.phase("evaluate")
    quality = run.measure(model, control)
    for warning in quality.warnings:
        observer.warned(warning)
    observer.phase("publish")
    if quality.num_removed < run.deepest:
        run, model = run.up_to(quality.num_removed), run.trained_up_to(quality.num_removed, model)
    run = replace(run, dense=run.dense.in_dtype(run.source.dtype))
    manifest = run.manifest(quality, model, control)
    write = partial(run.write, manifest=manifest, model=model, control=control)
    deepest = run.models(model)[run.deepest]
    check = partial(
        verify_portable, dense=run.dense, keep=deepest.keep, own=deepest.own, how=how, ask=confirm
    )
    return publish(run.places.target, manifest, write, confirm, check, overwrite=overwrite)


def healing_digest(heal: Heal, source: Manifest) -> str:
    """Hex sha256 of what is healed, and how: equal for equal healings."""
    words = {
        "heal": heal.digested(),
        "files": {name: entry.sha256 for name, entry in source.files.items()},
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Trained:
    """Models after their training. ``tensors`` are the values of the adapter that are kept."""

    students: Students
    tensors: Tensors
    progress: Progress


@dataclass(frozen=True)
class _Healing:
    heal: Heal
    source: Manifest
    places: HealedPlaces
    spec: PruneSpec
    dense: DenseModel
    windows: RepairWindows
    observer: Observer
    peers: Peers

    @property
    def is_elastic(self) -> bool:
        return self.heal.depths is Depths.ALL

    @property
    def deepest(self) -> int:
        return len(self.source.removed_blocks)

    @cached_property
    def repairs(self) -> Mapping[int, Repaired]:
        """What the source was repaired by, at each depth that is trained and was repaired."""
        depths = range(1, self.deepest + 1) if self.is_elastic else [self.deepest]
        stored = {depth: repair_of(self.places.source, depth) for depth in depths}
        return {
            depth: repaired
            for depth, repaired in stored.items()
            if repaired is not None and repaired.method is not Method.NONE
        }

    @cached_property
    def repaired(self) -> Own:
        """What the repair of the source has changed at its full depth."""
        repaired = self.repairs.get(self.deepest)
        if repaired is None:
            return NO_OWN
        return dict(folded(self.dense.model, self.source.keep, repaired, self.dense.read))

    def healed(self) -> _Trained:
        dense, heal = self.dense.model, self.heal
        if self.is_elastic:
            students = of_order(dense, self.source.removed_blocks, self.repairs, heal)
        else:
            students = alone(dense, self.source.keep, self.repaired, heal)
        trained = self._trained(HEALED, students, heal)
        if trained.progress.step and not trained.progress.best.step:
            raise HealingDiverged(
                f"the healing did not bring {self.source.name} closer to {self.source.parent} on "
                "held-out text: choose a learning rate below "
                f"{heal.rate(dense.config.hidden_size):g}"
            )
        return trained

    def control(self, healed: Progress) -> _Trained:
        """The dense model after as many steps as the healed one that is kept, and no other end."""
        tokens = max(1, healed.best.num_tokens)
        heal = replace(self.heal, num_tokens=tokens, max_minutes=None, patience=2**31)
        students = alone(self.dense.model, self.dense.every_block, NO_OWN, heal)
        return self._trained(CONTROL, students, heal)

    def models(self, trained: _Trained) -> Mapping[int, PrunedModel]:
        """The healed models, by their number of removed blocks."""
        model, read, adapter = self.dense.model, self.dense.read, trained.tensors
        if not self.is_elastic:
            keep = self.source.keep
            own = with_adapter(model, self.heal, adapter, self.repaired, read, keep)
            return {self.deepest: PrunedModel(keep, own)}
        healed = {}
        for depth, student in enumerate(trained.students.each, start=1):
            part, repaired = on_blocks(model, adapter, student.adapted), self.repairs.get(depth)
            own = depth_tensors(model, student.keep, self.heal, part, repaired, read)
            healed[depth] = PrunedModel(student.keep, own)
        return healed

    def up_to(self, num_removed: int) -> Self:
        """The same for the first removals of the source."""
        repair = self.source.repair
        source = replace(
            self.source,
            removed_blocks=self.source.removed_blocks[:num_removed],
            repair=repair and tuple(each for each in repair if each.num_removed <= num_removed),
        )
        return replace(self, source=source)

    def trained_up_to(self, num_removed: int, trained: _Trained) -> _Trained:
        """The elastic models of the first removals."""
        students = trained.students.up_to(num_removed)
        blocks = students.adapter.settings["layers_to_transform"]
        tensors = on_blocks(self.dense.model, trained.tensors, blocks)
        return replace(trained, students=students, tensors=tensors)

    def changed(self, trained: _Trained) -> Own:
        """The tensors in place of those of the dense model: of all depths those that they share."""
        if self.is_elastic:
            dense = self.dense
            return with_adapter(dense.model, self.heal, trained.tensors, NO_OWN, dense.read)
        return self.models(trained)[self.deepest].own

    def _trained(self, which: str, students: Students, heal: Heal) -> _Trained:
        digest = students.digest(healing_digest(heal, self.source))
        file = self.places.state_of(which)
        earlier = read_state(file, digest)
        self._begin_together(students.adapter, earlier.progress.step if earlier else 0)
        training = Training(
            self.dense.model,
            students,
            self.windows,
            heal,
            digest=digest,
            micro_tokens=self.dense.resources.batch_tokens,
            earlier=earlier,
            peers=self.peers,
        )
        for step in training.steps():
            self.observer.healing(which, step)
            if step.number % STEPS_PER_SAVE == 0 or step.check is not None:
                self._save(file, training)
        self._save(file, training)
        tensors = training.best if which == HEALED else students.adapter.values()
        return _Trained(students, tensors, training.progress)

    def _begin_together(self, adapter: Adapter, step: int) -> None:
        """Raises ``PeerLost`` if a process has not found the state that the first one has."""
        self.peers.take_first(list(adapter.parameters.values()))
        if (first := self.peers.as_first(step)) != step:
            raise PeerLost(
                f"the first process resumes from step {first:g}, this one from step {step}: all "
                "processes need the same data directory"
            )

    def _save(self, file: Path, training: Training) -> None:
        if self.peers.is_first:
            save_state(file, training.state())

    def measure(self, model: _Trained, control: _Trained | None) -> Quality:
        return assess_healed(
            self.spec,
            self.dense,
            self.source.quality,
            self.models(model),
            None if control is None else self._control_model(control.tensors),
            self.observer.evaluating,
        )

    def _control_model(self, adapter: Tensors) -> PrunedModel:
        dense = self.dense
        own = with_adapter(dense.model, self.heal, adapter, NO_OWN, dense.read)
        return PrunedModel(self.dense.every_block, own)

    def manifest(self, quality: Quality, model: _Trained, control: _Trained | None) -> Manifest:
        itemsize = self.dense.model.dtype.itemsize
        changed = tuple(sorted(self.changed(model)))
        sizes = (self.dense.model.get_parameter(each).numel() for each in changed)
        return replace(
            self.source,
            name=self.places.target.name,
            num_parameters=num_parameters(view(self.dense.model, self.source.keep)),
            quality=quality,
            repair=self.source.repair if self.is_elastic else None,
            files={},
            created_at=time.time(),
            spec={**self.source.spec, "heal": self.heal.to_dict()},
            spec_digest=healing_digest(self.heal, self.source),
            healing=Healing(
                parent=self.source.name,
                settings=self.heal,
                method=self.source.repaired_by,
                run=Run.of(model.progress),
                control=Run.of(control.progress) if control else None,
                texts=tuple(self._texts()),
                changed=changed,
                num_bytes=itemsize * sum(sizes),
                adapted=tuple(student.adapted for student in model.students.each),
            ),
        )

    def _texts(self) -> Iterator[TrainedText]:
        parts = {"train": self.windows.train, "held_out": self.windows.selection}
        for part, domains in parts.items():
            for domain, windows in domains.items():
                num_windows, seqlen = windows.token_ids.shape
                yield TrainedText(part, domain, windows.source, num_windows, seqlen, windows.digest)

    def write(
        self, directory: Path, manifest: Manifest, model: _Trained, control: _Trained | None
    ) -> None:
        """Every file of the checkpoint but its manifest."""
        deepest = self.models(model)[self.deepest]
        self.dense.save(deepest.keep, directory, own=deepest.own)
        copy_companions(self.dense.path, directory)
        base = self.source.parent if self.is_elastic else self.source.name
        model.students.adapter.save(directory / ADAPTER_FOLDER, model.tensors, base)
        if control is not None:
            control.students.adapter.save(
                directory / CONTROL_FOLDER, control.tensors, self.source.parent
            )
        copyfile(self.places.source / "calibration.json", directory / "calibration.json")
        records = json.loads((self.places.source / "removal.json").read_text(encoding="utf-8"))
        records = records[: self.deepest]
        (directory / "removal.json").write_text(f"{json.dumps(records, indent=2)}\n")
        for depth in manifest.repair or ():  # which the adapter of all depths is added to
            name = repair_file(depth.num_removed)
            (directory / name).parent.mkdir(exist_ok=True)
            copyfile(self.places.source / name, directory / name)
        removals = [read_record(Removal, removal) for removal in records]
        card = model_card(manifest, removals, lineage_of(self.dense.path))
        (directory / "README.md").write_text(card, encoding="utf-8")
        write_plot(manifest, directory)


def _parent_of(source: Manifest, models: ModelStore, resources: Resources) -> DenseModel:
    """The dense model that the checkpoint was made from. Raises ``NotHealable``."""
    path = models.inspect(source.parent).path
    if source.parent_fingerprint not in (None, fingerprint(path)):
        raise NotHealable(
            f"{source.parent} was replaced after {source.name} was pruned from it, so it "
            "cannot be the teacher: prune the model again"
        )
    dtype = PruneSpec.from_dict(source.spec).dtype
    return load_dense_model(path, Resident.MODEL, replace(resources, num_actors=0), dtype=dtype)
