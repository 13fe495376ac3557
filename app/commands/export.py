"""``sleb export``: write a model for other programs, and verify the files before they appear."""

import json
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from app.commands.export_cost import cost_of, is_costly, refusal
from app.commands.subject import NotEvaluable, Subject, subject_of
from app.models.measured_speedups import MeasuredSpeedups
from app.terminal import print_json, print_next
from pruning.checkpoints.card import Exported, QuantizedText, export_card
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.publish import CheckpointExists, check_place, place
from pruning.checkpoints.quantized import (
    check_readable,
    compared_perplexities,
    load_quantized,
    require_compressed_tensors,
    save_quantized,
)
from pruning.checkpoints.staging import remove_empty, staged, sweep
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.checkpoints.verify import compare_gguf, verify_portable
from pruning.checkpoints.verify_expected import expectation
from pruning.config import Verify, WorkerSettings
from pruning.extras import require_extra
from pruning.models.architectures import CannotQuantize, check_quantizable
from pruning.models.blocks import Own, num_blocks, pruned_config, view
from pruning.models.lineage import lineage_of
from pruning.models.names import VariantName
from pruning.models.store import (
    copy_companions,
    num_parameters,
    pick_device,
    read_config,
    set_up_torch,
)
from pruning.models.towers import tower_type
from pruning.plural import counted
from pruning.process import exit_on
from pruning.search.dense_model import DenseModel, Resources, fitting_resident, load_dense_model
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize
from pruning.storage.folder import check_folder, send_folder
from pruning.store_url import StoreUrl

EXPORT_FILE = "sleb-export.json"
_FORMAT = 1
_PREDICTED = "measured times of embeddings, blocks and head, on the machine that pruned the model"
_MEASURED = "sleb bench or sleb compare, on the machine of the export"


@dataclass(frozen=True)
class Export:
    """What to write, and where: at least one of ``out_dir`` and ``gguf``."""

    model: str
    out_dir: Path | None
    gguf: Path | None
    dtype: str  # "auto" is the model's own
    shard_bytes: int
    overwrite: bool
    quantize: Quantize | None = None  # of the directory's weights
    to: StoreUrl | None = None  # for the directory
    accept: bool = False  # quantized weights that cost more than the limit


def run_export(export: Export, settings: WorkerSettings, *, as_json: bool) -> None:
    """Write the directory, the GGUF file or both, and print where they are.

    Raises ``CheckpointExists``, ``GgufUnsupported``, ``ExtraMissing``, ``CannotQuantize``
    and what ``subject_of`` raises before any weights are read, ``CheckpointNotPortable`` if
    the verification fails, and ``QuantizationCostly`` for a cost that is not accepted.
    """
    set_up_torch(settings.threads)
    subject = _rounded(subject_of(export.model, settings), export)
    out, gguf = (path and path.expanduser().absolute() for path in (export.out_dir, export.gguf))
    if out is not None:
        check_place(out, overwrite=export.overwrite)
    if gguf is not None:
        _check_file(gguf, overwrite=export.overwrite)
        require_extra("gguf", "a GGUF file")
        from pruning.checkpoints.gguf import check_gguf  # noqa: PLC0415 - an extra

        config = read_config(subject.path)
        check_gguf(config if subject.keep is None else pruned_config(config, subject.keep))
    if export.to is not None:
        check_folder(export.to, overwrite=export.overwrite)
    with exit_on(signal.SIGTERM), ExitStack() as temporary:
        place = out
        if export.to is not None and out is None:
            sweep(settings.data_dir)
            place = temporary.enter_context(staged(settings.data_dir / "export")) / "model"
        with Console(stderr=True).status("Writing and verifying the model"):
            exported = _export(subject, export, place, gguf, settings)
        if export.to is not None and place is not None:
            send_folder(export.to, place, overwrite=export.overwrite)
    paths: dict[str, str | None] = {
        "path": str(out) if out else None,
        "gguf": str(gguf) if gguf else None,
    }
    if export.to is not None:
        paths["url"] = str(export.to)
    _print_result(exported, paths, settings.verify, as_json=as_json)


def _export(
    subject: Subject, export: Export, out: Path | None, gguf: Path | None, settings: WorkerSettings
) -> Exported:
    resources = replace(Resources.of(settings), num_actors=0)  # no search
    resident = fitting_resident(subject.path, resources)
    dense = load_dense_model(subject.path, resident, resources, dtype=export.dtype)
    exporter = _Exporter(
        subject,
        dense,
        subject.keep or dense.every_block,
        subject.own_tensors(dense),
        settings,
        export.accept,
    )
    exported = exporter.exported
    if out is not None:
        exported = exporter.write_directory(out, export.shard_bytes, overwrite=export.overwrite)
    if gguf is not None:
        exporter.write_gguf(gguf)
    return exported


@dataclass(frozen=True)
class _Exporter:
    """A loaded model, the blocks of it to write, and the tensors that their repair has changed."""

    subject: Subject
    dense: DenseModel
    keep: Blocks
    own: Own
    settings: WorkerSettings
    accept: bool

    @property
    def exported(self) -> Exported:
        """The lineage: from the manifest of a checkpoint directory, else from the name."""
        name, total = Path(self.subject.name).name, num_blocks(self.dense.model)
        parent = VariantName.parse(name).model
        if (self.subject.path / MANIFEST).is_file():
            manifest = read_manifest(self.subject.path)
            name, parent, total = manifest.name, manifest.parent, manifest.num_blocks
        dtype = str(self.dense.model.dtype).removeprefix("torch.")
        removed, is_plain = self.subject.removed_blocks, self.subject.weights is None
        healed_in, speedups = self.subject.healed_in, MeasuredSpeedups(self.settings.data_dir)
        measured = speedups.of(Path(parent).name, len(removed)) if is_plain else None
        return Exported(
            name,
            Path(parent).name,
            total,
            removed,
            dtype,
            self.subject.method,
            self.subject.weights,
            predicted_speedup=self.subject.predicted_speedup if removed and is_plain else None,
            measured_speedup=None if measured is None else measured.interval,
            domains=self.subject.measured,
            probe=self.subject.probe,
            healing=None if healed_in is None else read_manifest(healed_in).healing,
        )

    def write_directory(self, out: Path, shard_bytes: int, *, overwrite: bool) -> Exported:
        """Return what was written, with the perplexities of quantized weights."""
        pruned = view(self.dense.model, self.keep)
        num_bytes = num_parameters(pruned) * self.dense.model.dtype.itemsize
        written = [self.exported]

        def write(directory: Path) -> None:
            if self.subject.weights is None:
                self.dense.save(self.keep, directory, shard_bytes, self.own)
            else:
                rounded = self.dense.forward(self.keep, self.subject.weights, self.own)
                save_quantized(rounded.model, directory, shard_bytes)
            copy_companions(self.dense.path, directory)
            verify_portable(
                directory,
                self.dense,
                self.keep,
                self.own,
                quantize=self.subject.weights,
                how=self.settings.verify,
            )
            written.append(self._measured(directory))
            card = export_card(written[-1], lineage_of(self.dense.path))
            (directory / "README.md").write_text(card, encoding="utf-8")
            record = json.dumps(_record(written[-1]), indent=2, sort_keys=True) + "\n"
            (directory / EXPORT_FILE).write_text(record, encoding="utf-8")

        try:
            place(out, num_bytes, write, overwrite=overwrite)
        finally:
            remove_empty(out.parent)
        return written[-1]

    def _measured(self, directory: Path) -> Exported:
        """With the perplexities of the quantized weights as transformers loads them.

        Without a verification, a cost that is accepted is not measured. Raises
        ``QuantizationCostly``.
        """
        weights = self.subject.weights
        if weights is None or (self.settings.verify is Verify.OFF and self.accept):
            return self.exported
        texts = self._texts(load_quantized(directory, pick_device(self.settings.device)))
        if is_costly(texts) and not self.accept:
            raise refusal(weights, texts, self._milder(weights))
        return replace(self.exported, perplexities=texts)

    def _milder(self, weights: Quantize) -> list[QuantizedText]:
        """The same with int8 weights, which are not written. Nothing for int8 weights."""
        if weights is Quantize.INT8:
            return []
        return self._texts(self.dense.forward(self.keep, Quantize.INT8, self.own).model)

    def _texts(self, model: PreTrainedModel) -> list[QuantizedText]:
        plain = self.dense.forward(self.keep, own=self.own)
        measured = compared_perplexities(plain, model, self.dense.tokenizer)
        return [QuantizedText.of(*each) for each in measured]

    def write_gguf(self, file: Path) -> None:
        """Write beside the target first, and rename once transformers has read it back."""
        from pruning.checkpoints.gguf import write_gguf  # noqa: PLC0415 - an extra

        sweep(file.parent)
        try:
            with staged(file) as folder:
                staged_file = folder / file.name
                write_gguf(staged_file, self.dense, self.keep, self.exported.name, self.own)
                if self.settings.verify is not Verify.OFF:
                    compare_gguf(staged_file, expectation(self.dense, self.keep, self.own))
                with staged_file.open("rb") as written:
                    os.fsync(written.fileno())
                staged_file.replace(file)
        finally:
            remove_empty(file.parent)


def _record(exported: Exported) -> dict[str, Any]:
    """Lineage, quality and speed as JSON values. A speed-up names its source.

    It is no manifest, which has the digests of the files and the whole removal order.
    """
    words = {**asdict(exported), "healing": None}
    if (healing := exported.healing) is not None:
        tokens = healing.run.best.num_tokens
        words["healing"] = {"checkpoint": healing.parent, "num_tokens": tokens}
    predicted, measured = words.pop("predicted_speedup"), words.pop("measured_speedup")
    return {
        "format": _FORMAT,
        **words,
        "speedup": {
            "predicted": predicted and {"value": predicted, "source": _PREDICTED},
            "measured": measured and {**measured, "source": _MEASURED},
        },
        "versions": {name: version(name) for name in ("sleb-serve", "torch", "transformers")},
    }


def _rounded(subject: Subject, export: Export) -> Subject:
    """The subject with the weights that the directory gets."""
    if export.quantize is not None and subject.weights not in (None, export.quantize):
        raise NotEvaluable(
            f"{export.model!r} has {subject.weights} weights, which cannot be quantized to "
            f"{export.quantize}: use the model without +{subject.weights}"
        )
    subject = replace(subject, weights=export.quantize or subject.weights)
    if subject.weights is None:
        return subject
    if subject.weights is Quantize.W8A8:
        raise CannotQuantize("w8a8 cannot be exported yet: use int8 or int4")
    if export.gguf is not None:
        raise GgufUnsupported(
            "a GGUF file cannot be written from int8 or int4 weights: export without "
            "quantization, then quantize the file with llama-quantize"
        )
    if (whole := tower_type(subject.path)) is not None:
        raise CannotQuantize(
            f"a {whole} cannot be exported with {subject.weights} weights yet: export it "
            "without quantization"
        )
    require_compressed_tensors()
    model_type = read_config(subject.path).model_type
    check_quantizable(model_type)
    check_readable(model_type)
    return subject


def _check_file(file: Path, *, overwrite: bool) -> None:
    if file.is_dir() or (file.exists() and not overwrite):
        raise CheckpointExists(f"{file} already exists: choose another path, or use --overwrite")


def _print_result(
    exported: Exported, paths: Mapping[str, str | None], verify: Verify, *, as_json: bool
) -> None:
    if as_json:
        is_verified = verify is not Verify.OFF
        print_json({**asdict(exported), **paths, "verified": is_verified})
        return
    blocks = exported.num_blocks - len(exported.removed_blocks)
    weights = f", with {exported.quantized} weights" if exported.quantized else ""
    verified = "not verified" if verify is Verify.OFF else "verified with transformers"
    console = Console(highlight=False)
    for path in filter(None, paths.values()):
        what = f"{exported.name}, {counted(blocks, 'block')} in {exported.dtype}{weights}"
        console.print(f"{what}, is in", markup=False)
        console.print(path, markup=False, soft_wrap=True)  # in one piece
    console.print(verified)
    for one in exported.perplexities:
        values = f"{one.plain:.3f} before, {one.quantized:.3f} after, ratio {one.ratio}"
        console.print(f"perplexity on {one.text}: {values}", markup=False)
    if exported.quantized is not None and exported.perplexities:
        console.print(f"{cost_of(exported.quantized, exported.perplexities)}.", markup=False)
    if (directory := paths["path"]) is not None:
        print_next(console, "serve it", f"vllm serve {quote(directory)}")
    if (gguf := paths["gguf"]) is not None:
        print_next(console, "serve it", f"llama-server -m {quote(gguf)}")
