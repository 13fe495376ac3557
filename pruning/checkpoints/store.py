"""Published checkpoints: Hugging Face directories with a manifest of their files and lineage.

A directory without a manifest is not a checkpoint. ``publish.py`` writes checkpoints atomically.
"""

import atexit
import hashlib
import json
import re
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.manifest_bounds import check_lengths
from pruning.checkpoints.staging import remove
from pruning.evaluation.quality import Quality
from pruning.healing.record import Healing
from pruning.models.block_times import BlockTimes
from pruning.models.names import VariantName
from pruning.models.opening import Openings
from pruning.models.store import DTYPE_BYTES, LoadedModel, load
from pruning.records import (
    InvalidRecord,
    check_time,
    parse_record,
    read_record,
    read_stored,
    reason_of,
)
from pruning.removal import kept
from pruning.repair.record import DepthRepair, Method, repair_file
from pruning.sleb import Blocks
from pruning.spec.heal import Heal

if TYPE_CHECKING:
    from pruning.repair.repair import Repaired

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,246}(\+healed)?")


class CheckpointNotFound(LookupError):
    """No published checkpoint of this name."""


class CheckpointCorrupt(ValueError):
    """The files do not match the manifest."""


@dataclass(frozen=True)
class FileEntry:
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Identity and lineage of a checkpoint. ``removed_blocks`` are in order of removal."""

    name: str
    parent: str
    num_blocks: int  # of the dense parent
    removed_blocks: tuple[int, ...]
    num_parameters: int
    dense_num_parameters: int
    quality: Quality
    dtype: str
    calibration: Mapping[str, Any]
    spec: Mapping[str, Any]
    spec_digest: str
    versions: Mapping[str, str]
    created_at: float  # seconds since the epoch
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT
    parent_fingerprint: str | None = None  # of the dense parent; None in old manifests
    repair: tuple[DepthRepair, ...] | None = None  # of depths 1, 2 ...; None: all are unrepaired
    repair_notes: tuple[str, ...] = ()  # on what is not repaired, and why
    block_times: BlockTimes | None = None  # of the dense parent when it was pruned
    healing: Healing | None = None  # where it is of all removals alone, ``repair`` is None
    tenant: str | None = None  # whom it belongs to; None: all keys see it
    parent_dtype: str | None = None  # of the files of the dense parent; None in old manifests

    @property
    def weight_bytes(self) -> int:
        """Size of the weights of the model."""
        return self.num_parameters * DTYPE_BYTES[self.dtype]

    @property
    def disk_bytes(self) -> int:
        """Size of the weights on disk, with those of all repairs; other files take a few MB."""
        return self.weight_bytes + sum(depth.num_bytes for depth in self.repair or ())

    @property
    def repaired_by(self) -> Method:
        """The repair of the published weights, which a healing may have followed."""
        if self.healing is not None:
            return self.healing.method
        return self.repair[-1].method if self.repair else Method.NONE

    @property
    def keep(self) -> Blocks:
        return self.keep_after(len(self.removed_blocks))

    def keep_after(self, num_removed: int) -> Blocks:
        """The blocks that are kept after the first ``num_removed`` removals."""
        return kept(self.num_blocks, self.removed_blocks[:num_removed])

    def is_seen_by(self, tenant: str | None) -> bool:
        """Whether a key of this tenant may know of it; None sees everything."""
        return self.tenant is None or tenant in (None, self.tenant)

    def predicted_speedup(self, num_removed: int) -> float | None:
        """Of a decode step of one sequence, on the machine of the run; None in old manifests."""
        times = self.block_times
        return times.speedup(self.num_blocks, num_removed) if times else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        data = parse_record(text)
        if "broken" in data:  # as a listing keeps those that it could not read
            raise InvalidRecord(str(data["broken"]))
        check_lengths(data)
        needed = {"quality": Quality.from_dict(data["quality"]), "files": data["files"]}
        if healing := data.get("healing"):
            needed["healing"] = {**healing, "settings": Heal.from_dict(healing["settings"])}
        manifest = read_record(cls, {**data, **needed})
        _check_manifest(manifest)
        return manifest


def _check_manifest(manifest: Manifest) -> None:
    """Raise ``InvalidRecord`` for fields that contradict each other."""
    num_blocks, removed = manifest.num_blocks, manifest.removed_blocks
    num_removed = len(removed)
    depths = [each.num_removed for each in manifest.repair or ()]
    check_time("created_at", manifest.created_at)
    for name, is_so in {
        "name": is_checkpoint_name(manifest.name),
        "removed_blocks": 1 <= num_removed == len({*removed}) < num_blocks
        and all(0 <= block < num_blocks for block in removed),
        "dtype": manifest.dtype in DTYPE_BYTES,
        "num_parameters": 0 <= manifest.num_parameters <= manifest.dense_num_parameters,
        "block_times": manifest.block_times is None or manifest.block_times.is_plausible,
        "quality": manifest.quality.has_depths(num_removed),
        "repair": depths == sorted({*depths}) and all(1 <= each <= num_removed for each in depths),
    }.items():
        if not is_so:
            raise InvalidRecord(f"{name}: inconsistent with other fields, or invalid")
    for file in manifest.files:
        if not _is_inside(file):
            raise InvalidRecord(f"invalid file name {file[:128]!r}")


def _is_inside(file: str) -> bool:
    """Whether the name of a file does not lead out of a folder."""
    path = PurePosixPath(file)
    return not (path.is_absolute() or ".." in path.parts or file in ("", ".", MANIFEST))


def is_checkpoint_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


class CheckpointStore:
    """The checkpoints under one directory, named by their directories.

    ``storage.checkpoints`` has one that knows those of an object store as well.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._openings = Openings(root)

    def path(self, name: str) -> Path:
        """The path for a checkpoint of this name. Raises ``CheckpointNotFound`` for a bad name."""
        if not is_checkpoint_name(name):
            raise CheckpointNotFound(f"invalid checkpoint name {name[:128]!r}")
        return self.root / name

    def names(self) -> list[str]:
        with suppress(PermissionError):
            return sorted(path.parent.name for path in self.root.glob(f"[!.]*/{MANIFEST}"))
        return []

    def holds(self, name: str) -> bool:
        try:
            return is_checkpoint_name(name) and (self.root / name / MANIFEST).is_file()
        except PermissionError:
            return False

    def manifest(self, name: str) -> Manifest:
        """Raises ``CheckpointNotFound`` or ``CheckpointCorrupt``."""
        return parse_manifest(self.content(name), str(self.root / name / MANIFEST))

    def to_heal(self, name: str, tenant: str | None = None) -> Manifest:
        """As ``manifest``, for a name that a user wants to heal. The error names the newest one.

        ``tenant`` sees checkpoints of its own, and those of none.
        """
        try:
            manifest = self.manifest(name)
            if manifest.is_seen_by(tenant):
                return manifest
        except CheckpointNotFound:
            pass
        model = VariantName.parse(name).model
        there = {
            checkpoint: each.created_at
            for checkpoint, each in self._manifests()
            if each.is_seen_by(tenant) and each.parent == model and each.healing is None
        }
        newest = max(there, key=lambda checkpoint: there[checkpoint], default=None)
        hint = f"the newest checkpoint of {model} is {newest}" if newest else "prune a model first"
        raise CheckpointNotFound(
            f"no checkpoint named {name[:128]!r}: expected a whole checkpoint, as NAME@JOB; {hint}"
        )

    def _manifests(self) -> Iterator[tuple[str, Manifest]]:
        """Those that can be read, by the names of their checkpoints."""
        for name in self.names():
            with suppress(CheckpointNotFound, CheckpointCorrupt):
                yield name, self.manifest(name)

    def content(self, name: str) -> bytes:
        """The manifest as it was published. Raises as ``manifest``."""
        try:
            return _manifest_content(self.path(name))
        except FileNotFoundError as error:
            raise _no_checkpoint(name) from error

    def num_bytes_of(self, tenant: str, but_of_jobs: Collection[str] = ()) -> int:
        """The size of all files of the checkpoints of a tenant, but those that these jobs made."""
        num_bytes = 0
        for name, manifest in self._manifests():
            is_counted = VariantName.of_checkpoint(name).job not in but_of_jobs
            if is_counted and manifest.tenant == tenant:
                num_bytes += sum(entry.num_bytes for entry in manifest.files.values())
        return num_bytes

    def is_here(self, name: str) -> bool:
        """Whether all files of the checkpoint are on this machine."""
        return self.holds(name)

    @contextmanager
    def held(
        self,
        name: str,
        files: Collection[str] | None = None,  # noqa: ARG002 - here are all of them
    ) -> Iterator[Path]:
        """The directory of the checkpoint, in which these files stay meanwhile; None: all files.

        Raises ``CheckpointNotFound`` or ``CheckpointCorrupt``.
        """
        self.manifest(name)
        yield self.path(name)

    def directory(self, name: str) -> Path:
        """The directory with all files, until this process ends. Raises as ``held``."""
        holding = ExitStack()
        path = holding.enter_context(self.held(name))
        atexit.register(holding.close)  # which also keeps it from being collected
        return path

    def refresh(self) -> None:
        """Know all checkpoints as they are now. Raises ``StoreError`` if there is a store."""

    def refresh_within(self, wait_s: float) -> None:
        """As ``refresh``, but wait no longer than that for a store, and raise nothing."""

    def delete(self, name: str) -> None:
        """Delete the checkpoint wherever it is. It is no error if it is nowhere."""
        with suppress(FileNotFoundError):  # another process removed it
            remove(self.path(name))

    def open(self, name: str, *, device: str = "auto") -> LoadedModel:
        """Load a checkpoint after verifying it. Its files stay as long as the model is loaded."""
        with ExitStack() as holding:
            self._openings.check(path := holding.enter_context(self.held(name)))
            loaded = open_checkpoint(path, device=device)
            weakref.finalize(loaded.model, holding.pop_all().close)
        return loaded

    def repair(self, name: str, num_removed: int) -> "Repaired | None":
        """As ``repair_of``. Raises as ``held``."""
        manifest, own = self.manifest(name), repair_file(num_removed)
        is_alone = manifest.healing is None and own in manifest.files
        with self.held(name, [own] if is_alone else None) as path:
            try:
                return repair_of(path, num_removed)
            except FileNotFoundError as error:  # deleted since it was looked at
                raise _no_checkpoint(name) from error


def _no_checkpoint(name: str) -> CheckpointNotFound:
    """It names no others: they may be secret."""
    return CheckpointNotFound(f"no checkpoint named {name[:128]!r}: `sleb models` lists them")


def read_manifest(path: Path) -> Manifest:
    """Raises ``FileNotFoundError`` or ``CheckpointCorrupt``."""
    return parse_manifest(_manifest_content(path), str(path / MANIFEST))


def _manifest_content(path: Path) -> bytes:
    """Raises as ``read_manifest``."""
    file = path / MANIFEST
    try:
        return read_stored(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointCorrupt(f"cannot read {file}: {error.strerror}") from error


def parse_manifest(content: bytes, place: str) -> Manifest:
    """Raises ``CheckpointCorrupt``, whose message names the ``place`` that it is from."""
    try:
        return Manifest.from_json(content.decode())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointCorrupt(f"{place} is not a manifest: {reason_of(error)}") from error


def open_checkpoint(path: Path, *, device: str = "auto") -> LoadedModel:
    """Load a published checkpoint.

    Raises what ``verify`` raises, and ``NotAModel`` if keys and config disagree.
    """
    verify(path)
    return load(path, device=device)


def repair_of(path: Path, num_removed: int) -> "Repaired | None":
    """The repair of a published checkpoint's model after so many removals; None without one.

    That of a checkpoint that was healed at its full depth is what the healing has changed, which
    its own weights contain. Of one that was healed at all depths, it is without the healing.
    Raises ``FileNotFoundError``, or ``CheckpointCorrupt`` if a file differs from the manifest.
    """
    from pruning.repair.stored import (  # noqa: PLC0415 - it imports torch
        RepairUnreadable,
        read_repair,
    )

    manifest = read_manifest(path)
    if manifest.healing is not None and not manifest.healing.is_elastic:
        return _healed(path, manifest.healing, manifest.keep)
    if manifest.repair is None:
        return None
    name = repair_file(num_removed)
    if name not in manifest.files:
        raise CheckpointCorrupt(f"{path}: {name} is not in the manifest")
    check_file(path, name, manifest.files[name])
    try:
        return read_repair(path, num_removed)
    except RepairUnreadable as error:
        raise CheckpointCorrupt(str(error)) from error


def _healed(path: Path, healing: Healing, keep: Blocks) -> "Repaired":
    from pruning.healing.adapter import changed_tensors  # noqa: PLC0415 - it imports torch
    from pruning.repair.repair import Repaired  # noqa: PLC0415 - likewise

    verify(path)
    return Repaired(healing.method, {}, changed_tensors(path, healing.changed, keep))


def verify(path: Path) -> Manifest:
    """Compare all bytes of a published checkpoint with its manifest.

    Raises ``CheckpointCorrupt`` if a file is missing or differs, or if there are other weights.
    """
    manifest = read_manifest(path)
    weights = {str(file.relative_to(path)) for file in path.rglob("*.safetensors")}
    if surplus := weights - manifest.files.keys():
        raise CheckpointCorrupt(f"{path}: {sorted(surplus)} are not in the manifest")
    for name, entry in manifest.files.items():
        check_file(path, name, entry)
    return manifest


def check_file(path: Path, name: str, entry: FileEntry) -> None:
    """Raises ``CheckpointCorrupt`` if the file is not the one of the manifest."""
    if not (path / name).is_file():
        raise CheckpointCorrupt(f"{path}: {name} is missing; publish the checkpoint again")
    if file_entry(path / name) != entry:
        raise CheckpointCorrupt(f"{path}: {name} changed after it was published")


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file."""
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
