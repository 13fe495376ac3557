"""Healing of a published pruned checkpoint: load, train, measure, publish what came out.

It knows nothing of queues and HTTP. The training is kept in a file, so that another process can go
on with it. An exception from the observer ends it before anything is published.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
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
from pruning.evaluation.assess import assess_healed, held_out_for
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import Quality
from pruning.extras import require_extra
from pruning.healing.adapter import Adapter, Merged, Tensors, adapted
from pruning.healing.lock import locked
from pruning.healing.peers import ALONE, PeerLost, Peers
from pruning.healing.places import ADAPTER_FOLDER, CONTROL, CONTROL_FOLDER, HEALED, HealedPlaces
from pruning.healing.progress import Progress
from pruning.healing.record import Healing, NotHealable, Run, TrainedText, check_healable
from pruning.healing.state import read_state, save_state
from pruning.healing.text import HealingText
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, Own, num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore, copy_companions
from pruning.removal import Removal
from pruning.repair.folding import folded
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.sleb import Blocks
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Resident

STEPS_PER_SAVE = 20
_PATIENCE_S = 60.0  # for a worker that has lost its lease, which is then killed


def heal_checkpoint(
    heal: Heal,
    places: HealedPlaces,
    *,
    name: str,
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
    """Heal the checkpoint at ``places.source`` and publish the result ``name``.

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
            manifest = _published(run, name, confirm, how, overwrite=overwrite)
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
    return _Healing(heal, source, places, spec, dense, windows, observer, peers)


def _published(
    run: "_Healing", name: str, confirm: Callable[[], object], how: Verify, *, overwrite: bool
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
    run, model = run.to_publish(model)
    manifest = run.manifest(name, quality, model, control)
    write = partial(run.write, manifest=manifest, model=model, control=control)
    check = partial(run.verify, own=model.own, how=how, ask=confirm)
    return publish(run.places.target, manifest, write, confirm, check, overwrite=overwrite)


def healing_digest(heal: Heal, source: Manifest) -> str:
    """Hex sha256 of what is healed, and how: equal for equal healings."""
    words = {
        "heal": heal.to_dict(),
        "files": {name: entry.sha256 for name, entry in source.files.items()},
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Trained:
    """A trained model: the blocks of the dense one, and the tensors in place of its own."""

    keep: Blocks
    own: Merged
    adapter: Adapter
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

    @cached_property
    def text(self) -> HealingText:
        train, held_out = (
            {domain: found.token_ids for domain, found in part.items()}
            for part in (self.windows.train, self.windows.selection)
        )
        return HealingText(train, held_out)

    @cached_property
    def repaired(self) -> Own:
        """What the repair of the source has changed."""
        repaired = repair_of(self.places.source, len(self.source.removed_blocks))
        if repaired is None:
            return NO_OWN
        return dict(folded(self.dense.model, self.source.keep, repaired, self.dense.read))

    def healed(self) -> _Trained:
        return self._trained(HEALED, self.source.keep, self.repaired, self.heal)

    def control(self, healed: Progress) -> _Trained:
        """The dense model after as many steps as the healed one that is kept, and no other end."""
        tokens = max(1, healed.best.num_tokens)
        heal = replace(self.heal, num_tokens=tokens, max_minutes=None, patience=2**31)
        every_block = tuple(range(num_blocks(self.dense.model)))
        return self._trained(CONTROL, every_block, NO_OWN, heal)

    def _trained(self, which: str, keep: Blocks, own: Own, heal: Heal) -> _Trained:
        adapter = adapted(view(self.dense.model, keep, own), heal)
        digest = healing_digest(heal, self.source)
        file = self.places.state_of(which)
        earlier = read_state(file, digest)
        self._begin_together(adapter, earlier.progress.step if earlier else 0)
        training = Training(
            self.dense.model,
            adapter,
            self.text,
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
        tensors = training.best if which == HEALED else adapter.values()
        merged = Merged(self.dense.model, keep, heal, tensors, own, self.dense.read)
        return _Trained(keep, merged, adapter, tensors, training.progress)

    def _begin_together(self, adapter: Adapter, step: int) -> None:
        """Raises ``PeerLost`` if a process has not found the state that the first one has."""
        self.peers.take_first(list(adapter.parameters.values()))
        if (first := self.peers.as_first(step)) != step:
            raise PeerLost(
                f"the first process goes on from step {first:g}, this one from {step}: all of "
                "them need the same data directory"
            )

    def _save(self, file: Path, training: Training) -> None:
        if self.peers.is_first:
            save_state(file, training.state())

    def measure(self, model: _Trained, control: _Trained | None) -> Quality:
        return assess_healed(
            self.spec,
            self.dense,
            self.source.quality,
            PrunedModel(model.keep, model.own),
            PrunedModel(control.keep, control.own) if control else None,
        )

    def to_publish(self, model: _Trained) -> tuple[Self, _Trained]:
        """With the dense weights in the type in which the source was published."""
        dtype = self.source.dtype
        if dtype == str(self.dense.model.dtype).removeprefix("torch."):
            return self, model
        dense = load_dense_model(self.dense.path, Resident.MODEL, self.dense.resources, dtype=dtype)
        run = replace(self, dense=dense)
        own = Merged(dense.model, model.keep, self.heal, model.tensors, run.repaired, dense.read)
        return run, replace(model, own=own)

    def manifest(
        self, name: str, quality: Quality, model: _Trained, control: _Trained | None
    ) -> Manifest:
        itemsize = self.dense.model.dtype.itemsize
        changed = tuple(sorted(model.own))
        sizes = (self.dense.model.get_parameter(each).numel() for each in changed)
        return replace(
            self.source,
            name=name,
            quality=quality,
            repair=None,
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
            ),
        )

    def _texts(self) -> Iterator[TrainedText]:
        parts = {"train": self.windows.train, "held_out": self.windows.selection}
        for part, domains in parts.items():
            for domain, found in domains.items():
                num_windows, seqlen = found.token_ids.shape
                yield TrainedText(part, domain, found.source, num_windows, seqlen, found.digest)

    def write(
        self, directory: Path, manifest: Manifest, model: _Trained, control: _Trained | None
    ) -> None:
        """Every file of the checkpoint but its manifest."""
        self.dense.save(model.keep, directory, own=model.own)
        copy_companions(self.dense.path, directory)
        model.adapter.save(directory / ADAPTER_FOLDER, model.tensors, self.source.name)
        if control is not None:
            control.adapter.save(directory / CONTROL_FOLDER, control.tensors, self.source.parent)
        for name in ("removal.json", "calibration.json"):
            copyfile(self.places.source / name, directory / name)
        found = json.loads((directory / "removal.json").read_text(encoding="utf-8"))
        removals = [Removal.from_dict(removal) for removal in found]
        card = model_card(manifest, removals, lineage_of(self.dense.path))
        (directory / "README.md").write_text(card, encoding="utf-8")
        write_plot(manifest, directory)

    def verify(self, directory: Path, *, own: Own, how: Verify, ask: Callable[[], object]) -> None:
        """Raises ``CheckpointNotPortable``, and what ``ask`` raises."""
        device = self.dense.resources.device
        verify_portable(
            directory, self.dense, self.source.keep, own, how=how, device=device, ask=ask
        )


def _parent_of(source: Manifest, models: ModelStore, resources: Resources) -> DenseModel:
    """The dense model that the checkpoint was made from. Raises ``NotHealable``."""
    path = models.inspect(source.parent).path
    if source.parent_fingerprint not in (None, fingerprint(path)):
        raise NotHealable(
            f"{source.parent} was replaced since {source.name} was pruned from it, so it cannot "
            "teach it: prune it again"
        )
    dtype = PruneSpec.from_dict(source.spec).dtype
    return load_dense_model(path, Resident.MODEL, replace(resources, num_actors=0), dtype=dtype)
