"""``sleb export``: a model as files for other programs, loaded again before they are visible."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from app.commands.subject import Subject, subject_of
from app.terminal import print_json
from pruning.checkpoints.card import Exported, export_card
from pruning.checkpoints.gguf import check_gguf, write_gguf
from pruning.checkpoints.publish import CheckpointExists, check_place, place
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.checkpoints.verify import verify_portable
from pruning.checkpoints.verify_expected import expectation
from pruning.checkpoints.verify_reload import compare_gguf
from pruning.config import Settings, Verify
from pruning.models.blocks import num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.names import VariantName
from pruning.models.store import copy_companions, num_parameters, read_config, set_up_torch
from pruning.search.dense_model import DenseModel, Resources, fitting_resident, load_dense_model
from pruning.sleb import Blocks


@dataclass(frozen=True)
class Export:
    """What to write where, at least one of ``out_dir`` and ``gguf``; ``dtype`` "auto" is the
    model's own.
    """

    model: str
    out_dir: Path | None
    gguf: Path | None
    dtype: str
    shard_bytes: int
    overwrite: bool


def run_export(wanted: Export, settings: Settings, *, as_json: bool) -> None:
    """Write what is wanted and say so.

    What cannot be done is refused before weights are read: raises ``CheckpointExists``,
    ``GgufUnsupported`` and what ``subject_of`` raises; then ``CheckpointNotPortable``.
    """
    set_up_torch(settings.threads)
    subject = subject_of(wanted.model, settings)
    out, gguf = (its and its.expanduser().absolute() for its in (wanted.out_dir, wanted.gguf))
    if out is not None:
        check_place(out, overwrite=wanted.overwrite)
    if gguf is not None:
        _check_file(gguf, overwrite=wanted.overwrite)
        check_gguf(read_config(subject.path))
    resources = Resources(settings.device, settings.state_budget)
    resident = fitting_resident(subject.path, resources)
    dense = load_dense_model(subject.path, resident, resources, dtype=wanted.dtype)
    job = _Job(subject, dense, subject.keep or tuple(range(num_blocks(dense.model))), settings)
    if out is not None:
        job.write_directory(out, wanted.shard_bytes, overwrite=wanted.overwrite)
    if gguf is not None:
        job.write_gguf(gguf)
    _tell(job.exported, out, gguf, settings.verify, as_json=as_json)


@dataclass(frozen=True)
class _Job:
    """The model that is exported, and how."""

    subject: Subject
    dense: DenseModel
    keep: Blocks
    settings: Settings

    @property
    def exported(self) -> Exported:
        """A checkpoint says itself whose child it is; what is neither that nor a name is dense."""
        name, total = Path(self.subject.name).name, num_blocks(self.dense.model)
        parent = VariantName.parse(name).model
        if (self.subject.path / MANIFEST).is_file():
            manifest = read_manifest(self.subject.path)
            name, parent, total = manifest.name, manifest.parent, manifest.num_blocks
        dtype = str(self.dense.model.dtype).removeprefix("torch.")
        return Exported(name, Path(parent).name, total, self.subject.removed_blocks, dtype)

    def write_directory(self, out: Path, shard_bytes: int, *, overwrite: bool) -> None:
        pruned = view(self.dense.model, self.keep)
        num_bytes = num_parameters(pruned) * self.dense.model.dtype.itemsize

        def write(directory: Path) -> None:
            self.dense.save(self.keep, directory, shard_bytes)
            copy_companions(self.dense.path, directory)
            card = export_card(self.exported, lineage_of(self.dense.path))
            (directory / "README.md").write_text(card, encoding="utf-8")
            verify_portable(
                directory,
                self.dense,
                self.keep,
                how=self.settings.verify,
                device=self.settings.device,
            )

        place(out, num_bytes, write, overwrite=overwrite)

    def write_gguf(self, file: Path) -> None:
        """Beside its place first, and renamed once transformers has read it back."""
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_name(f".{file.name}-{uuid4().hex}")
        try:
            write_gguf(half, self.dense, self.keep, self.exported.name)
            if self.settings.verify is not Verify.OFF:
                compare_gguf(half, expectation(self.dense, self.keep, self.settings.device))
            with half.open("rb") as written:
                os.fsync(written.fileno())
            half.replace(file)
        finally:
            with suppress(FileNotFoundError):
                half.unlink()


def _check_file(file: Path, *, overwrite: bool) -> None:
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointExists(f"{file} exists already: choose another place, or say --overwrite")


def _tell(
    exported: Exported, out: Path | None, gguf: Path | None, verify: Verify, *, as_json: bool
) -> None:
    places = {"path": out and str(out), "gguf": gguf and str(gguf)}
    if as_json:
        is_verified = verify is not Verify.OFF
        print_json({**asdict(exported), **places, "verified": is_verified})
        return
    blocks = exported.num_blocks - len(exported.removed_blocks)
    how = "not loaded again" if verify is Verify.OFF else "loaded again by transformers, and equal"
    console = Console(highlight=False)
    for place_ in filter(None, places.values()):
        text = f"{exported.name}, {blocks} blocks in {exported.dtype}, is in {place_} ({how})"
        console.print(text, markup=False, soft_wrap=True)
