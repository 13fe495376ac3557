"""What is checked of a job before it is recorded: all that a worker would refuse hours later."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from app.auth.keys import seen_tenant
from app.models.tokenizers import tokenizer_in
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.data.enough import check_text
from pruning.evaluation.assess import check_measures
from pruning.evaluation.task_sources import TaskSources
from pruning.extras import require_extra
from pruning.healing.record import check_healable
from pruning.jobs.estimate import DiskTooSmall, Footprint, footprint, heal_estimate
from pruning.models.architectures import ARCHITECTURES
from pruning.models.block_bytes import removals_for_bytes
from pruning.models.safetensors_headers import WeightSizes, weight_sizes
from pruning.models.store import DTYPE_BYTES, ModelInfo, ModelStore, read_config
from pruning.records import InvalidRecord, check_record
from pruning.repair.order import check_repair
from pruning.repair.ridge import fit_bytes
from pruning.spec import InvalidSpec
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import PruneSpec, Repair, Resident

_MAX_SHOWN_CHARS = 256  # of a file name in a message


@dataclass(frozen=True)
class TextsFolder:
    """The folder of calibration texts that jobs may name. Clients can read no file outside it."""

    path: Path
    max_bytes: int  # per file: a worker reads all of it into memory

    def file(self, name: str) -> Path:
        """Return the path of the text with symbolic links resolved.

        Raises ``InvalidSpec`` for a file outside the folder or larger than ``max_bytes``.
        """
        if "\0" in name:
            raise InvalidSpec("calibration.path", "the path contains a null character")
        path = self.path / name
        num_bytes = _num_bytes(path)
        if num_bytes is None or not path.resolve().is_relative_to(self.path.resolve()):
            raise InvalidSpec(
                "calibration.path",
                f"file {name[:_MAX_SHOWN_CHARS]!r} not found in the texts folder of the "
                "service: add the file to the folder first",
            )
        if num_bytes > self.max_bytes:
            raise InvalidSpec(
                "calibration.path",
                f"file {name[:_MAX_SHOWN_CHARS]!r} has {num_bytes} bytes, more than the limit "
                f"of {self.max_bytes} (SLEB_MAX_TEXT_BYTES): use a part of the file, which is "
                "enough for calibration",
            )
        return path.resolve()


@dataclass(frozen=True)
class Checked:
    """A pruning job that a worker can run, as far as can be told, and what it needs."""

    spec: PruneSpec
    num_evaluations: int
    num_blocks: int
    sizes: WeightSizes
    footprint: Footprint
    free_disk_bytes: int

    @property
    def healed_bytes(self) -> int:
        """Of the healed checkpoint, at most: one of all depths has repairs as well."""
        needed = self.footprint
        healing = heal_estimate(self.spec, self.num_blocks, self.sizes, succeeded=())
        if self.spec.heal is None or healing is None:
            return 0
        repair_bytes = needed.repair_bytes if self.spec.heal.depths is Depths.ALL else 0
        return needed.checkpoint_bytes + repair_bytes + healing.adapter_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """What the job writes at most: the pruned model, its repairs, and the healed one."""
        needed = self.footprint
        return needed.checkpoint_bytes + needed.repair_bytes + self.healed_bytes


@dataclass(frozen=True)
class CheckedHealing:
    """The same of a job that only heals the checkpoint of ``source``."""

    spec: PruneSpec
    source: Manifest
    num_blocks: int
    sizes: WeightSizes

    @property
    def checkpoint_bytes(self) -> int:
        """What the job writes at most."""
        healing = heal_estimate(self.spec, self.num_blocks, self.sizes, succeeded=())
        is_elastic = self.spec.heal is not None and self.spec.heal.depths is Depths.ALL
        model_bytes = self.source.disk_bytes if is_elastic else self.source.weight_bytes
        return model_bytes + (0 if healing is None else healing.adapter_bytes)


class MemoryTooSmall(ValueError):
    """The machine has less memory than a job needs, whatever else it does."""

    def __init__(self, need: "_Need", total_bytes: int) -> None:
        super().__init__(
            f"{need.what} needs at least {need.num_bytes} bytes of memory, but this machine "
            f"has {total_bytes}: {need.instead}"
        )
        self.param = need.param


@dataclass(frozen=True)
class _Need:
    """What a part of a job holds at once, at least."""

    what: str
    param: str
    num_bytes: int
    instead: str


@dataclass(frozen=True)
class JobChecks:
    """Checks jobs against the models, texts and checkpoints of this service.

    The folder of ``checkpoints`` is where a pruned model has to fit. ``memory_bytes`` is all that
    a worker can have; None if workers may be on other machines.
    """

    models: ModelStore
    texts: TextsFolder
    checkpoints: CheckpointStore
    memory_bytes: int | None = None
    task_data_dir: Path | None = None  # with questions that jobs may name

    def pruning(self, spec: PruneSpec) -> Checked:
        """Raises what says why a worker could not run it."""
        if spec.heal is not None:
            require_extra("heal", "healing")
        info = self.models.inspect(spec.model)
        spec = spec.resolved(self.texts.file)
        check_measures(spec, info)
        TaskSources(self.task_data_dir).check(spec.tasks)
        check_repair(spec.repair, read_config(info.path))
        num_evaluations = spec.num_evaluations(info.num_blocks)
        _check_positions(spec, info)
        sizes = weight_sizes(info.path, ARCHITECTURES[info.model_type].writes.fitted)
        _check_bytes(spec, info, sizes)
        needed = footprint(spec, info, sizes)
        _check_memory(_needs(spec, info, sizes, needed), self.memory_bytes)
        copies = 1 if spec.heal is None else 2
        free_bytes = self._checked_disk(needed.least_checkpoint_bytes * copies)
        self._check_text(spec, info)
        _check_storable(spec)
        return Checked(spec, num_evaluations, info.num_blocks, sizes, needed, free_bytes)

    def healing(self, name: str, heal: Heal) -> CheckedHealing:
        """The same of a job that only heals the checkpoint of that name."""
        require_extra("heal", "healing")
        manifest = self.checkpoints.to_heal(name, seen_tenant())
        check_healable(manifest.name, manifest.healing)
        info = self.models.inspect(manifest.parent)
        spec = replace(PruneSpec.from_dict(manifest.spec), model=manifest.parent, heal=heal)
        _check_storable(spec)
        TaskSources(self.task_data_dir).check(spec.tasks)
        self._checked_disk(manifest.weight_bytes)
        sizes = weight_sizes(info.path, ARCHITECTURES[info.model_type].writes.fitted)
        *_, of_healing = _needs(spec, info, sizes, footprint(spec, info, sizes))
        _check_memory((of_healing,), self.memory_bytes)
        self._check_text(spec, info)
        return CheckedHealing(spec, manifest, info.num_blocks, sizes)

    def _check_text(self, spec: PruneSpec, info: ModelInfo) -> None:
        self.models.check_opened(info.path)
        check_text(spec.calibration, tokenizer_in(info.path))

    def _checked_disk(self, needed_bytes: int) -> int:
        """The bytes that are free for checkpoints. Raises ``DiskTooSmall``."""
        root = self.checkpoints.root
        existing = next(path for path in (root, *root.parents) if path.is_dir())
        free_bytes = shutil.disk_usage(existing).free
        if needed_bytes > free_bytes:
            raise DiskTooSmall(needed_bytes, free_bytes)
        return free_bytes


def _check_storable(spec: PruneSpec) -> None:
    """Raise ``InvalidSpec`` for what the record of a job could not hold."""
    try:
        check_record(spec)
    except InvalidRecord as error:
        param, _, reason = str(error).partition(": ")
        raise InvalidSpec(param, f"{param}: {reason}") from error


def _check_positions(spec: PruneSpec, info: ModelInfo) -> None:
    lengths = {"calibration.seqlen": spec.calibration.seqlen}
    if spec.evaluation is not None and spec.evaluation.seqlen is not None:
        lengths["evaluation.seqlen"] = spec.evaluation.seqlen
    for param, seqlen in lengths.items():
        if info.max_positions is not None and seqlen > info.max_positions:
            raise InvalidSpec(
                param,
                f"seqlen={seqlen} exceeds the context length of {spec.model}, "
                f"{info.max_positions} tokens",
            )


def _check_bytes(spec: PruneSpec, info: ModelInfo, sizes: WeightSizes) -> None:
    """Raise ``TargetUnreachable`` for a number of bytes that cannot be met, or is met already."""
    if spec.target_bytes is None:
        return
    blocks = info.num_blocks
    item_bytes = DTYPE_BYTES[info.dtype if spec.published_dtype == "auto" else spec.published_dtype]
    of_block = item_bytes * sizes.num_in_blocks // blocks
    total, most = item_bytes * sizes.num_parameters(blocks), spec.most_removals(blocks)
    removals_for_bytes(spec.target_bytes, total, [of_block] * most, most)


def _needs(
    spec: PruneSpec, info: ModelInfo, sizes: WeightSizes, needed: Footprint
) -> tuple[_Need, ...]:
    """Of the search, of a repair that was asked for, and of the healing.

    ``repair=auto`` repairs nothing where memory does not suffice, so it has no need of its own.
    """
    is_streamed = spec.resident is Resident.STREAM
    weights = 0 if is_streamed else needed.weight_bytes
    all_needs = [
        _Need(
            "the search",
            "model",
            weights + needed.least_state_bytes,
            "reduce calibration.seqlen" + ("" if is_streamed else ", or set resident=stream"),
        )
    ]
    if spec.repair is Repair.RIDGE and sizes.num_refit:
        width_in = sizes.num_refit // info.hidden_size
        fit = fit_bytes(width_in, info.hidden_size, num_folds=1)
        all_needs.append(_Need("repair=ridge", "repair", weights + fit, "use repair=auto"))
    healing = heal_estimate(spec, info.num_blocks, sizes, succeeded=())
    if healing is not None:
        num_bytes = needed.weight_bytes + healing.training_bytes
        all_needs.append(_Need("healing", "heal", num_bytes, "reduce heal.rank, or leave heal out"))
    return tuple(all_needs)


def _check_memory(all_needs: tuple[_Need, ...], total_bytes: int | None) -> None:
    """Raise ``MemoryTooSmall`` for the first that does not fit; None is memory of others."""
    for need in all_needs:
        if total_bytes is not None and need.num_bytes > total_bytes:
            raise MemoryTooSmall(need, total_bytes)


def _num_bytes(path: Path) -> int | None:
    """Return the size of a regular file, and None for anything else."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # the name is too long, or the folder is not readable
        return None
