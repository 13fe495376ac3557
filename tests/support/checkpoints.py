"""Checkpoints of two small files, published without a model."""

from pathlib import Path

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Quality
from pruning.jobs.job import Job

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


def manifest_of(name: str = "tiny@prn-1", spec_digest: str = "a") -> Manifest:
    return Manifest(
        name=name,
        parent="tiny",
        num_blocks=6,
        removed_blocks=(3, 1),
        num_parameters=10,
        dense_num_parameters=14,
        quality=Quality((1.0, 1.1, 1.3), (2.0, 2.1, 2.3), "some text"),
        dtype="float32",
        calibration={"source": "self", "num_windows": 1, "seqlen": 8, "digest": "d"},
        spec={},
        spec_digest=spec_digest,
        versions={},
        created_at=1.0,
    )


def write(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).write_bytes(content)


def published(root: Path, job: Job) -> Path:
    path = root / job.checkpoint_name
    publish(path, manifest_of(path.name, job.spec.digest()), write)
    return path
