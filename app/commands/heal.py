"""``sleb heal``: a healing in this process, with a progress bar and a table at the end."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote

from rich.console import Console

from app.commands.domain_table import print_domains
from app.commands.progress import HealWork, SearchBar, search_progress
from app.commands.prune import new_place
from app.commands.task_table import print_tasks
from app.terminal import print_json, print_next
from pruning.checkpoints.publish import DiskFull, free_bytes_at
from pruning.checkpoints.staging import remove_empty
from pruning.checkpoints.store import MANIFEST, Manifest, read_manifest
from pruning.config import WorkerSettings
from pruning.evaluation.task_shares import TaskShares
from pruning.heal_checkpoint import heal_checkpoint, healing_digest, help_heal
from pruning.healing.lock import HealingInProgress, locked
from pruning.healing.peers import launched
from pruning.healing.places import HealedPlaces
from pruning.healing.train import HealingDiverged
from pruning.models.names import healed_name
from pruning.models.store import ModelStore, set_up_torch
from pruning.plural import counted
from pruning.search.dense_model import Resources
from pruning.spec.heal import Heal
from pruning.storage.checkpoints import current_checkpoints


def run_heal(
    heal: Heal,
    checkpoint: str,
    out: Path | None,
    settings: WorkerSettings,
    *,
    overwrite: bool = False,
    as_json: bool,
) -> None:
    """Heal a published checkpoint, named or by its directory.

    The same settings continue an interrupted training of the same checkpoint. Raises
    ``CheckpointNotFound``, ``CheckpointExists``, ``DiskFull`` or ``HealingInProgress`` first.
    """
    set_up_torch(settings.threads)
    source = _source(checkpoint, settings)
    out = new_place(out or source.with_name(healed_name(source.name)), overwrite=overwrite)
    places = _places(heal, source, out, settings)
    models, console = ModelStore(settings.models_dir, allow_paths=True), Console(stderr=True)
    with launched(settings.device) as (peers, device):
        resources = Resources.of(settings.model_copy(update={"device": device}))
        if not peers.is_first:
            help_heal(heal, places, models, resources, peers)
            return
        taken = _place_taken(out, settings)
        with _left_in_order(places, console), taken, search_progress(console) as progress:
            bar = SearchBar(progress, heal=HealWork.of(heal, read_manifest(source)))
            healed = heal_checkpoint(
                heal,
                places,
                models=models,
                observer=bar,
                resources=resources,
                how=settings.verify,
                overwrite=overwrite,
                patience_s=0,
                peers=peers,
            )
            bar.end()
    _print(healed, out, as_json=as_json)


@contextmanager
def _left_in_order(places: HealedPlaces, console: Console) -> Iterator[None]:
    """Say at an error that the training is kept, if there is one of this process."""
    try:
        yield
    except BaseException as error:
        if places.is_begun and not isinstance(error, HealingInProgress | HealingDiverged):
            console.print("The training state is saved: run the same command to continue.")
        raise
    finally:
        remove_empty(places.target.parent)


def _place_taken(out: Path, settings: WorkerSettings) -> AbstractContextManager[None]:
    """Keep other processes from healing into the same place, with whatever settings."""
    digest = hashlib.sha256(str(out).encode()).hexdigest()
    return locked(settings.data_dir / "searches" / digest, str(out))


def _places(heal: Heal, source: Path, out: Path, settings: WorkerSettings) -> HealedPlaces:
    """The places, with the state under a name for these settings. Raises ``DiskFull``."""
    manifest = read_manifest(source)
    if manifest.weight_bytes > (free_bytes := free_bytes_at(out)):
        raise DiskFull(manifest.weight_bytes, free_bytes)
    state = settings.data_dir / "searches" / healing_digest(heal, manifest)
    return HealedPlaces(source, out, state)


def _source(checkpoint: str, settings: WorkerSettings) -> Path:
    """A directory with a manifest, or else the checkpoint of this name."""
    directory = Path(checkpoint).expanduser().absolute()
    if (directory / MANIFEST).is_file():
        return directory
    checkpoints = current_checkpoints(settings)
    checkpoints.to_heal(checkpoint)  # raises CheckpointNotFound
    return checkpoints.directory(checkpoint)


def _print(healed: Manifest, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(out), **asdict(healed)})
        return
    console = Console(highlight=False)
    num_removed = len(healed.removed_blocks)
    if domains := healed.quality.domains:
        print_domains(console, [domain.at_depth(num_removed) for domain in domains])
    print_tasks(console, TaskShares.of(healed.quality.tasks))
    assert healed.healing is not None
    run = healed.healing.run
    before, after = run.checks[0].loss, run.best.loss
    for text in (
        *_came_back(healed),
        f"healed {healed.healing.parent}: {run.num_tokens:,} tokens in {run.seconds:.0f} s",
        f"kept: step {run.best.step} of {run.num_steps}, the best one on held-out text",
        f"divergence from the dense model there: {before:.4g} to {after:.4g} nats per token",
        f"published in {out}",
    ):
        console.print(text, markup=False, soft_wrap=True)
    places = f"{quote(str(out))} {quote(f'{out}-exported')}"
    print_next(console, "write it for vLLM and transformers", f"sleb export {places}")


def _came_back(healed: Manifest) -> Iterator[str]:
    """The shares of the lost nats at each depth, where all are healed and were measured."""
    if healed.healing is None or not healed.healing.is_elastic:
        return
    for depth in range(1, len(healed.removed_blocks) + 1):
        by_domain = {each.domain: each.healed_share(depth) for each in healed.quality.domains}
        shares = [
            f"{share:.0%} on {name}" for name, share in by_domain.items() if share is not None
        ]
        if shares:
            lost = f"with {counted(depth, 'block')} removed, recovered loss:"
            yield f"{lost} {', '.join(shares)}"
