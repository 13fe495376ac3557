"""The whole API in this process, on a tiny model and a real Valkey, without a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.spec.calibration import CalibrationSpec
from pruning.spec.prune import PruneSpec, Repair
from tests.support.recorder import Recorder
from tests.support.serving import local_api


def publish_pruned(
    data_dir: Path,
    num_remove: int = 3,
    job: str = "prn-1",
    spec: PruneSpec | None = None,
    model: str = "tiny",
    repair: Repair = Repair.NONE,
) -> Manifest:
    """What a worker leaves behind when a job of this depth, or this spec, has succeeded.

    Unrepaired by default, so that its models are plain views of the dense one.
    """
    name = f"{model}@{job}"
    calibration = CalibrationSpec(num_samples=2, seqlen=12)
    return prune(
        spec or PruneSpec(model, num_remove, calibration=calibration, repair=repair),
        name=name,
        target=CheckpointStore(data_dir / "checkpoints").path(name),
        models=ModelStore(data_dir / "models"),
        observer=Recorder(),
    )


@pytest.fixture
def data_dir(tiny_models_dir: Path) -> Path:
    return tiny_models_dir.parent


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, max_num_seqs=8, max_waiting=4, drain_s=0)


@pytest.fixture
def client(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[TestClient]:
    """``redis_client`` makes the store empty before and checks it afterwards."""
    redis_client.ping()
    with local_api(settings, redis_url) as client:
        yield client
