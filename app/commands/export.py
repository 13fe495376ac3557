"""``sleb export``: write a model for other programs, and verify the files before they appear."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from app.commands.subject import Subject, subject_of
from app.terminal import print_json
from pruning.checkpoints.card import Exported, export_card
from pruning.checkpoints.gguf import check_gguf, write_gguf
from pruning.checkpoints.publish import CheckpointExists, check_place, place
from pruning.checkpoints.staging import remove_empty
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.checkpoints.verify import verify_portable
from pruning.checkpoints.verify_expected import expectation
from pruning.checkpoints.verify_reload import compare_gguf
from pruning.config import Verify, WorkerSettings
from pruning.models.blocks import Own, num_blocks, view
from pruning.models.lineage import lineage_of
from pruning.models.names import VariantName
from pruning.models.store import copy_companions, num_parameters, read_config, set_up_torch
from pruning.search.dense_model import DenseModel, Resources, fitting_resident, load_dense_model
from pruning.sleb import Blocks


@dataclass(frozen=True)
class Export:
    """What to write, and where: at least one of ``out_dir`` and ``gguf``."""

    model: str
    out_dir: Path | None
    gguf: Path | None
    dtype: str  # "auto" is the model's own
    shard_bytes: int
    overwrite: bool


def run_export(export: Export, settings: WorkerSettings, *, as_json: bool) -> None:
    """Write the directory, the GGUF file or both, and print where they are.

    Raises ``CheckpointExists``, ``GgufUnsupported`` and what ``subject_of`` raises before any
    weights are read, and ``CheckpointNotPortable`` if the verification fails.
    """
    set_up_torch(settings.threads)
    subject = subject_of(export.model, settings)
    out, gguf = (path and path.expanduser().absolute() for path in (export.out_dir, export.gguf))
    if out is not None:
        check_place(out, overwrite=export.overwrite)
    if gguf is not None:
        _check_file(gguf, overwrite=export.overwrite)
        check_gguf(read_config(subject.path))
    resources = replace(Resources.of(settings), num_actors=0)  # no search
    resident = fitting_resident(subject.path, resources)
    dense = load_dense_model(subject.path, resident, resources, dtype=export.dtype)
    exporter = _Exporter(
        subject,
        dense,
        subject.keep or tuple(range(num_blocks(dense.model))),
        subject.own_tensors(dense),
        settings,
    )
    if out is not None:
        exporter.write_directory(out, export.shard_bytes, overwrite=export.overwrite)
    if gguf is not None:
        exporter.write_gguf(gguf)
    _print_result(exporter.exported, out, gguf, settings.verify, as_json=as_json)


@dataclass(frozen=True)
class _Exporter:
    """A loaded model, the blocks of it to write, and the tensors that their repair has changed."""

    subject: Subject
    dense: DenseModel
    keep: Blocks
    own: Own
    settings: WorkerSettings

    @property
    def exported(self) -> Exported:
        """The lineage: from the manifest of a checkpoint directory, else from the name."""
        name, total = Path(self.subject.name).name, num_blocks(self.dense.model)
        parent = VariantName.parse(name).model
        if (self.subject.path / MANIFEST).is_file():
            manifest = read_manifest(self.subject.path)
            name, parent, total = manifest.name, manifest.parent, manifest.num_blocks
        dtype = str(self.dense.model.dtype).removeprefix("torch.")
        removed = self.subject.removed_blocks
        return Exported(name, Path(parent).name, total, removed, dtype, self.subject.method)

    def write_directory(self, out: Path, shard_bytes: int, *, overwrite: bool) -> None:
        pruned = view(self.dense.model, self.keep)
        num_bytes = num_parameters(pruned) * self.dense.model.dtype.itemsize

        def write(directory: Path) -> None:
            self.dense.save(self.keep, directory, shard_bytes, self.own)
            copy_companions(self.dense.path, directory)
            card = export_card(self.exported, lineage_of(self.dense.path))
            (directory / "README.md").write_text(card, encoding="utf-8")
            verify_portable(
                directory,
                self.dense,
                self.keep,
                self.own,
                how=self.settings.verify,
                device=self.settings.device,
            )

        try:
            place(out, num_bytes, write, overwrite=overwrite)
        finally:
            remove_empty(out.parent)

    def write_gguf(self, file: Path) -> None:
        """Write beside the target first, and rename once transformers has read it back."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}-{uuid4().hex}")
        try:
            write_gguf(temporary, self.dense, self.keep, self.exported.name, self.own)
            if self.settings.verify is not Verify.OFF:
                device = self.settings.device
                compare_gguf(temporary, expectation(self.dense, self.keep, device, self.own))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(file)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _check_file(file: Path, *, overwrite: bool) -> None:
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointExists(f"{file} exists already: choose another path, or use --overwrite")


def _print_result(
    exported: Exported, out: Path | None, gguf: Path | None, verify: Verify, *, as_json: bool
) -> None:
    paths = {"path": out and str(out), "gguf": gguf and str(gguf)}
    if as_json:
        is_verified = verify is not Verify.OFF
        print_json({**asdict(exported), **paths, "verified": is_verified})
        return
    blocks = exported.num_blocks - len(exported.removed_blocks)
    verified = "not verified" if verify is Verify.OFF else "loaded by transformers and verified"
    console = Console(highlight=False)
    for path in filter(None, paths.values()):
        text = f"{exported.name}, {blocks} blocks in {exported.dtype}, is in {path} ({verified})"
        console.print(text, markup=False, soft_wrap=True)
