"""The whole API in this process, on a tiny model and a real Valkey, without a worker."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import MANIFEST, CheckpointStore, Manifest
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.recorder import Recorder
from tests.support.serving import local_api

# Manifest and other files of what has been published, by spec and fingerprint of the dense model
_PUBLISHED: dict[tuple[str, str], tuple[Manifest, dict[str, bytes]]] = {}


def publish_pruned(
    data_dir: Path,
    num_remove: int = 3,
    job: str = "prn-1",
    spec: PruneSpec | None = None,
    model: str = "tiny",
    repair: Repair = Repair.NONE,
) -> Manifest:
    """Publish what a worker publishes when a job of this depth, or of this spec, has succeeded.

    Unrepaired by default, so that its models are plain views of the dense one. The same search
    runs once. Later its files are published again, with another name and time.
    """
    name = f"{model}@{job}"
    target = CheckpointStore(data_dir / "checkpoints").path(name)
    calibration = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)
    spec = spec or PruneSpec(model, num_remove, calibration=calibration, repair=repair)
    key = json.dumps(spec.to_dict()), fingerprint(data_dir / "models" / model)
    if key not in _PUBLISHED:
        models = ModelStore(data_dir / "models")
        manifest = prune(spec, name=name, target=target, models=models, observer=Recorder())
        paths = [path for path in target.rglob("*") if path.is_file() and path.name != MANIFEST]
        files = {str(path.relative_to(target)): path.read_bytes() for path in paths}
        _PUBLISHED[key] = manifest, files
        return manifest
    earlier, files = _PUBLISHED[key]

    def write(directory: Path) -> None:
        for path, content in files.items():
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_bytes(content)
        card = directory / "README.md"
        card.write_text(card.read_text().replace(earlier.name, name))

    return publish(target, replace(earlier, name=name, created_at=time.time()), write)


@pytest.fixture
def data_dir(tiny_models_dir: Path) -> Path:
    return tiny_models_dir.parent


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, max_num_seqs=8, max_waiting=4, drain_s=0)


@pytest.fixture
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is loaded by the first request for it: most tests of jobs have none."""
    monkeypatch.setenv("SLEB_PRELOAD", "[]")


@pytest.fixture
def client(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[TestClient]:
    """``redis_client`` makes the store empty before and checks it afterwards."""
    redis_client.ping()
    with local_api(settings, redis_url) as client:
        yield client
